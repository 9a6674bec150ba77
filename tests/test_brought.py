"""Files and command lines as users bring them, each through the command that they would type."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

CASES = yaml.safe_load((Path(__file__).parent / "data/brought/cases.yaml").read_text("utf-8"))
ROWS = [{"instruction": f"{i}+{i}?", "output": str(2 * i)} for i in range(24)]
KNOWN = {"rows": json.dumps(ROWS), "lines": "\n".join(map(json.dumps, ROWS[:4]))}


@pytest.fixture
def brought(tmp_path, tiny_checkpoint):
    """Write the files of a case."""

    def write(case):
        for name, content in case.get("files", {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            text = KNOWN.get(text, text).replace("{model}", str(tiny_checkpoint))
            path.write_text(text, encoding="utf-8")
        if "model" not in case:
            return
        folder = tmp_path / case["model"]
        shutil.copytree(tiny_checkpoint, folder)
        config, settings = folder / "model_config.yaml", folder / "tokenizer_config.json"
        config.write_text(
            yaml.safe_dump(yaml.safe_load(config.read_text()) | case.get("config", {}))
        )
        found = json.loads(settings.read_text()) | case.get("tokenizer", {})
        settings.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return write


@pytest.mark.parametrize("name", CASES)
def test_what_users_bring(name, brought, run, tiny_checkpoint, tmp_path, monkeypatch):
    case = CASES[name]
    brought(case)
    monkeypatch.setenv("HERE", str(tmp_path))
    command = case["command"].replace("{model}", str(tiny_checkpoint))
    status, out, err = run(*shlex.split(command))
    said = " ".join((out + err).split())
    assert status == case.get("status", 0), said
    for text in case.get("says", ()):
        assert text in said
    if status:  # one line, whatever it was
        assert len(err.strip().splitlines()) == 1
        assert not any(path.name == "results" for path in tmp_path.iterdir())
