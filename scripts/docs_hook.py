"""What mkdocs does beside its own: files outside docs/ that a page links to go into the site.

A page says `../results/…`, which is right in a checkout; the site has the same file as `results/…`.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\]\(\.\./(results/[^)\s]+\.(?:svg|html))\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the linked files; one that is not there stays a broken link, which mkdocs reports."""
    docs = Path(config["docs_dir"])
    for page in sorted(docs.glob("*.md")):
        for name in OUTSIDE.findall(page.read_text(encoding="utf-8")):
            if (docs.parent / name).is_file() and name not in files.src_uris:
                files.append(
                    File(name, str(docs.parent), config["site_dir"], config["use_directory_urls"])
                )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Bring the links to where the files lie in the site."""
    return OUTSIDE.sub(r"](\1)", markdown)
