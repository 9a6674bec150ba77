"""The README names what there is, and nothing else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not a checkout")
def test_the_tree_in_the_readme_has_every_module_once():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## Where things are", 1)[1].split("```")[1]
    named = re.findall(r"^  (\w+\.py) ", tree, flags=re.MULTILINE)
    modules = {path.name for path in (ROOT / "skip2bench").glob("*.py")} - {
        *("__init__.py", "__main__.py")
    }
    assert sorted(named) == sorted(modules)
