"""The HTML report: one file by itself, and how a browser shows it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from skip2bench.config.commands import ReportConfig
from skip2bench.report.run import render_page, render_report

DATA = Path(__file__).parents[1] / "data"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(params=["en", "ja"])
def page(request, tmp_path, monkeypatch):
    shutil.copytree(DATA / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    html = render_report(ReportConfig(lang=request.param, format="html"))
    assert not (tmp_path / "results" / "figures").exists()
    return html


def test_the_page_is_one_file_without_script_or_network(page):
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "http-equiv" not in page
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', page)
    assert all(address.startswith(("#", "data:,")) for address in addresses)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_page_says_what_the_markdown_says(page):
    lang = re.search(r'<html lang="(\w+)"', page)[1]
    markdown = render_report(ReportConfig(lang=lang))
    numbers = re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)", "", markdown))
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    text = text[text.index("<main>") :]
    assert re.findall(r"\d+\.\d+", re.sub(r"<[^>]+>", "", text)) == numbers
    assert page.count("<table>") == markdown.count("|\n|-")
    headings = [line.lstrip("# ") for line in markdown.splitlines() if line.startswith("#")]
    commands = re.search(r"```bash\n(.*?)```", markdown, flags=re.DOTALL)[1]
    assert all(heading in page for heading in headings if heading not in commands)


def test_charts_have_alternative_texts_and_ids_of_their_own(page):
    charts = re.findall(r"<figure>(.*?)</figure>", page, flags=re.DOTALL)
    assert len(charts) == 5
    assert all(re.search(r'<svg role="img" aria-label="[^"]{20,}"', chart) for chart in charts)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page):
        assert (target[0] or target[1]) in ids


def test_values_cannot_become_elements():
    hostile = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://x/y)"
    html = render_page(f"# T\n\n{hostile}", {}, "en")
    assert "<img" not in html
    assert "javascript:" not in re.sub(r"<p>.*?</p>", "", html)
    assert 'href="javascript' not in html


MEASURE = """
<script>
const errors = [];
addEventListener('error', event => errors.push(String(event.message)));
addEventListener('load', () => {
  const wide = [...document.querySelectorAll('main > *')].filter(
    e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  const box = e => e.getBoundingClientRect();
  const seen = e => box(e).width > 100 && box(e).height > 20;
  document.title = 'RESULT' + JSON.stringify({
    errors, wide: wide.length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    tables: [...document.querySelectorAll('table')].every(seen),
    charts: [...document.querySelectorAll('figure svg')].every(seen),
    requests: performance.getEntriesByType('resource').map(r => r.name),
    page: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('figure svg text')).fill,
  });
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_all_of_it(page, width, dark, tmp_path):
    # a frame has the width that is asked for: a headless window is never narrower than 500
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    (tmp_path / "frame.html").write_text(
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>onload = () => setTimeout(() => { document.body.textContent ="
        " document.querySelector('iframe').contentDocument.title }, 300)</script>",
        "utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"RESULT(\{.*?\})</body>", done.stdout, flags=re.DOTALL)
    assert found, done.stdout[-500:]
    result = json.loads(found[1])
    assert result["errors"] == []
    assert result["requests"] == []
    assert result["overflow"] <= 0
    assert result["wide"] == 0
    assert result["tables"]
    assert result["charts"]
    assert (result["page"] == "rgb(22, 24, 27)") is dark
    assert (result["ink"] == "rgb(230, 232, 234)") is dark


HOSTILE = (
    "<script>alert(1)</script>|`x`\n# h](javascript:alert(1)) ![i](https://x/y) \u202egpj"
    " $x$ \x1b[31m</text><image href='x' onload='alert(1)'/>"
)


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_hostile_results_make_a_harmless_page(lang, tmp_path, monkeypatch):
    shutil.copytree(DATA / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    for path in Path("results").glob("*/*/summary.json"):
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary |= {"label": HOSTILE + str(summary.get("label")), "model": HOSTILE}
        summary["error"] = None if summary["status"] == "ok" else HOSTILE
        for configuration in summary.get("configurations", ()):
            configuration["label"] = HOSTILE + configuration["label"]
        path.write_text(json.dumps(summary))
    for path in Path("results").glob("*/*/environment.json"):
        environment = json.loads(path.read_text(encoding="utf-8"))
        environment |= {"command": f"{HOSTILE} ``` ~~~", "processor": f"- {HOSTILE}"}
        environment["checkpoint"] = {"name": HOSTILE, "sha256": HOSTILE}
        path.write_text(json.dumps(environment))
    damaged = Path("results/train/`x` | <script>")
    damaged.mkdir()
    (damaged / "summary.json").write_text("{")
    page = render_report(ReportConfig(lang=lang, format="html"))
    tags = set(re.findall(r"<([a-zA-Z]+)", page))
    assert not tags & {"script", "img", "image", "a", "iframe", "object", "foreignObject", "form"}
    assert not re.search(r"<[^>]*\son\w+\s*=", page)
    assert not re.search(r"<[^>]*javascript:", page)
    assert not re.search("[\x1b\u202e]", page)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    # every table has as many cells in each row as in its head: no label ended a cell
    for table in re.findall(r"<table>(.*?)</table>", page, flags=re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)
        assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1
    assert page.count("<h1>") == 1
