"""The pages of docs/ that scripts write are up to date, and their links lead somewhere."""

import json
from pathlib import Path

import pytest

import check_links
import draw_architecture
import write_reference
import write_schemas

ROOT = next(path for path in Path(__file__).parents if (path / "pyproject.toml").is_file())

pytestmark = pytest.mark.skipif(not (ROOT / "results/reference").is_dir(), reason="not a checkout")


def test_the_reference_is_up_to_date():
    assert write_reference.PAGE.read_text(encoding="utf-8") == write_reference.render_page()


def test_the_reference_has_flags_values_and_defaults():
    lines = write_reference.render_page().splitlines()
    assert "| `--epochs N` | 5 | Passes over the training samples. |" in lines
    assert any(line.startswith("| `--resume` `--no-resume` | ") for line in lines)
    assert any(line.startswith("| `--run TEXT` | ") and "repeatable" in line for line in lines)
    assert "    skip2bench cache verify [NAMES] [FLAGS]" in lines
    assert len([line for line in lines if line.startswith("| `--epochs N`")]) == 1
    page = "\n".join(lines)
    shared = page[page.index("As for `train`") :].partition("\n\n")[0]
    assert "`--epochs`" in shared


def test_the_picture_of_the_packages_is_up_to_date():
    packages = draw_architecture.read_packages(ROOT / "skip2bench")
    drawn = draw_architecture.render_picture(packages)
    assert draw_architecture.PICTURE.read_text(encoding="utf-8") == drawn


@pytest.fixture
def made_up(tmp_path):
    """A function that writes `skip2bench/NAME.py` for each of its modules."""

    def write(modules: dict[str, str]) -> Path:
        folder = tmp_path / "skip2bench"
        for name, text in modules.items():
            path = folder / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return write


def test_the_picture_shows_packages_words_and_imports(made_up):
    folder = made_up(
        {
            "__init__": "",
            "errors": '"""Errors & more."""',
            "io/__init__": '"""Files,\nwhole."""',
            "io/whole": "from skip2bench.errors import Skip2BenchError",
            "train/__init__": '"""Runs."""',
            "train/run": "import torch\ndef f():\n    from skip2bench import io\n",
            "train/ranks/__init__": "",
            "train/ranks/launch": "import skip2bench.errors",
            "train/loop": "if TYPE_CHECKING:\n    from skip2bench.cli import app\n",
        }
    )
    packages = draw_architecture.read_packages(folder)
    assert {name: package.imports for name, package in packages.items()} == {
        "errors": set(),
        "io": {"errors"},
        "train": {"io", "errors"},
    }
    picture = draw_architecture.render_picture(packages)
    assert "Errors &amp; more." in picture
    assert ">Files,<" in picture
    assert picture.index(">train<") < picture.index(">io<") < picture.index(">errors<")
    assert "<title>train imports io</title>" in picture
    assert "#c0392b" not in picture


def test_the_picture_marks_what_does_not_go_down(made_up):
    folder = made_up(
        {
            "io/__init__": "",
            "io/whole": "from skip2bench.config.run import RunConfig",
            "config/__init__": "",
            "config/run": "",
        }
    )
    picture = draw_architecture.render_picture(draw_architecture.read_packages(folder))
    assert picture.count("#c0392b") == 1
    assert 'fill="#c0392b"><title>io imports config</title>' in picture


def test_a_package_without_a_layer_is_refused(made_up):
    with pytest.raises(SystemExit, match="no layer for utils"):
        draw_architecture.read_packages(made_up({"utils/__init__": ""}))


def test_links_lead_somewhere():
    assert check_links.find_broken_links(ROOT) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# What it is: `bench`\n\n# Two\n\n# Two\n")
    (tmp_path / "README.md").write_text(
        "[good](docs/a.md#what-it-is-bench) [also](docs/a.md#two-1) [web](https://example.org/x)\n\n"
        "| [table](docs/b.md) | [heading](docs/a.md#three) | ![picture](x.svg) | [up](../x) |\n"
        "|---|---|---|---|\n\n"
        "`[code](nowhere.md)` [own](#no)\n"
    )
    assert check_links.find_broken_links(tmp_path) == [
        "README.md: docs/b.md (no such file)",
        "README.md: docs/a.md#three (no such heading)",
        "README.md: x.svg (no such file)",
        "README.md: ../x (outside the checkout)",
        "README.md: #no (no such heading)",
    ]


def test_the_schemas_are_those_of_the_records():
    folder = write_schemas.FOLDER
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    assert written == write_schemas.render_schemas()
    environment = json.loads(written["environment.schema.json"])["$defs"]["Environment"]
    assert (
        environment["properties"]["dirty"]["description"] == "True where the checkout had changes."
    )
