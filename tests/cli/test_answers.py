"""`generate` on the command line."""

import io
import json
import re
import subprocess
import sys

import pytest


@pytest.fixture
def trained(train):
    return str(train(method="skip2", max_steps=2)[3])


def test_an_answer_goes_to_standard_output(run, trained):
    status, out, err = run("generate", trained, "--prompt", "Add 1.", "--max-new-tokens", "5")
    assert status == 0
    assert out.strip()
    assert "Skip2-LoRA (3 blocks): 5 tokens at" in err


def test_both_answers_stand_in_a_table(run, trained):
    arguments = ["--prompt", "[b]Add[/b] 1.", "--max-new-tokens", "5", "--compare"]
    _, out, _ = run("generate", trained, *arguments)
    assert "[b]Add[/b] 1." in out
    assert "base" in out
    assert "Skip2-LoRA (3 blocks)" in out


def test_programs_get_json(run, trained):
    arguments = ["--prompt", "a", "--prompt", "b", "--max-new-tokens", "5", "--compare", "--json"]
    _, out, _ = run("generate", trained, *arguments, "--input", "c")
    exchanges = json.loads(out)
    assert [each["prompt"] for each in exchanges] == ["a", "b"]
    assert {each["input"] for each in exchanges} == {"c"}
    replies = [each[side] for each in exchanges for side in ("base", "adapted")]
    assert all(0 < reply["tokens"] <= 5 and reply["text"] for reply in replies)


def test_standard_input_is_a_prompt(run, trained, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Add 1.\nAnd 2.\n"))
    _, out, _ = run("generate", trained, "--max-new-tokens", "3", "--json")
    assert json.loads(out)[0]["prompt"] == "Add 1.\nAnd 2."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "error: the prompt is empty; give --prompt"),
        (["--prompt", "x", "--temperature", "-1"], "error: --temperature is -1.0"),
        (["--prompt", "x", "--device", "tpu"], "error: device is 'tpu'"),
    ],
)
def test_bad_input_is_one_line(run, trained, arguments, message):
    status, _, err = run("generate", trained, *arguments)
    assert status == 1
    assert message in err


def test_an_exported_folder_of_others_is_refused(run, trained):
    run("export", trained, "--to", "hf", "--out-dir", "hf")
    status, _, err = run("generate", "hf", "--prompt", "x")
    assert status == 1
    assert "'hf' is a Hugging Face model, which transformers loads; give a run's folder" in err


def test_export_prints_what_was_made(run, trained):
    status, out, _ = run("export", trained, "--to", "litgpt", "--out-dir", "out")
    assert status == 0
    assert re.search(r"16 → \d+ channels", out)
    assert "Exported to: out" in out
    status, out, _ = run("export", trained, "--to", "litgpt", "--out-dir", "out2", "--json")
    assert json.loads(out)["folder"] == "out2"


def test_a_reader_that_goes_away_ends_it_quietly(trained):
    command = [sys.executable, "-m", "skip2bench", "generate", trained, "--prompt", "Add."]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 0
    assert "Traceback" not in error


def test_standard_input_is_utf_8_whatever_the_locale_is(run, trained, monkeypatch):
    for given, status in ((b"\xe4\xbd\x95?", 0), (b"\xff\xfe abc", 1)):
        stream = io.TextIOWrapper(io.BytesIO(given), encoding="ascii")
        monkeypatch.setattr("sys.stdin", stream)
        found, out, err = run("generate", trained, "--max-new-tokens", "3", "--json")
        assert found == status
        if status:
            assert "error: standard input is no UTF-8 text" in err
        else:
            assert json.loads(out)[0]["prompt"] == "\u4f55?"
