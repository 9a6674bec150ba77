import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import skip2bench.cli.app as cli
from skip2bench.errors import Skip2BenchError


def test_litgpts_spellings_are_ours():
    given = [
        "train",
        "--out_dir",
        "a_b",
        "--train.max_steps=3",
        "--skip2lora_block_indices",
        "[0, 1]",
    ]
    given += ["--eval.interval", "5", "--logger_name", "csv", "--skip2lora_output_layer", "lm_head"]
    assert cli.normalise_flags(given) == [
        *("train", "--out-dir", "a_b", "--max-steps=3", "--blocks", "[0, 1]"),
        *("--eval-interval", "5", "--logger", "csv", "--target", "lm_head"),
    ]


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        (["org/model", "--epochs", "1"], ["--checkpoint-dir", "org/model", "--epochs", "1"]),
        (["--data", "JSON", "--data.json_path", "a.json"], ["--data", "a.json"]),
        (["--data=JSON", "--data.json_path=a.json"], ["--data=a.json"]),
        (["--data.val_split_fraction", "0.1"], ["--val-split-fraction", "0.1"]),
        (["--data.mask_prompt", "true"], ["--mask-prompt"]),
        (["--data.mask_prompt=False"], ["--no-mask-prompt"]),
        (["--lora_key", "true", "--lora_mlp", "false"], ["--lora-key", "--no-lora-mlp"]),
        (["--force", "false", "--resume", "true"], ["--resume"]),
        (["--optimizer", "AdamW", "--optimizer.lr", "1e-4"], ["--learning-rate", "1e-4"]),
        (["--optimizer.init_args.weight_decay=0"], ["--weight-decay=0"]),
        (
            ["--train.learning_rate", "3e-4", "--io.out_dir", "x"],
            ["--learning-rate", "3e-4", "--out-dir", "x"],
        ),
        (["--eval.max_iters", "5", "--train.log_interval=1", "--seed", "3"], ["--seed", "3"]),
        (["--access_token", "secret", "--no-bench"], ["--no-bench"]),
        (
            ["--train.epochs", "3", "--batch_size", "8"],
            ["--epochs", "3", "--global-batch-size", "8"],
        ),
    ],
)
def test_litgpts_command_lines_are_ours(given, ours):
    assert cli.normalise_flags(["train", *given]) == ["train", *ours]


def test_flags_that_change_nothing_are_named(capsys):
    cli.normalise_flags(["train", "--eval.max_iters", "5", "--train.min_lr", "0"])
    said = capsys.readouterr().err
    assert "no effect here: --eval.max_iters" in said
    assert "--train.min_lr (the rate falls to 0)" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--train.max_tokens", "5"], r"--train.max_tokens: LitGPT's key .* \(use max_steps\)"),
        (["--optimizer", "SGD"], "optimizer 'SGD' is not supported"),
    ],
)
def test_what_litgpt_has_and_this_has_not(given, says):
    with pytest.raises(Skip2BenchError, match=says):
        cli.normalise_flags(["train", *given])


def test_help_names_every_flag_of_the_contract(run):
    _, text, _ = run("train", "--help")
    flags = ["--method", "--blocks", "--target", "--checkpoint-dir", "--data", "--config"]
    flags += ["--out-dir", "--epochs", "--max-steps", "--max-seq-length", "--global-batch-size"]
    flags += ["--micro-batch-size", "--learning-rate", "--lr-warmup-steps", "--lora-r", "--skip-r"]
    flags += ["--lora-alpha", "--lora-dropout", "--mask-prompt", "--no-mask-prompt", "--seed"]
    flags += ["--eval-interval", "--precision", "--device", "--devices", "--json"]
    assert [flag for flag in flags if flag not in text] == []
    _, text, _ = run("bench", "--help")
    flags = ["--model", "--methods", "--blocks", "--batch-size", "--seq-length", "--rounds"]
    flags += ["--iterations", "--device", "--precision", "--json"]
    assert [flag for flag in flags if flag not in text] == []
    _, text, _ = run("report", "--help")
    assert all(flag in text for flag in ("--results", "--lang", "--output"))


@pytest.mark.parametrize(
    "statement", ["import skip2bench", "import skip2bench.cli.app", "import skip2bench.report.run"]
)
def test_light_modules_import_neither_torch_nor_litgpt(statement):
    code = f"{statement}, sys; print({{'torch', 'litgpt', 'lightning'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_version(run):
    status, text, _ = run("--version")
    assert (status, text) == (0, f"skip2bench {cli.__version__}\n")


def test_the_guides_commands(run, tiny_checkpoint, tiny_data, tmp_path):
    """Section 2 of the guide with `litgpt finetune` replaced, and the plot of its section 3."""
    common = [
        "--checkpoint_dir",
        str(tiny_checkpoint),
        "--data",
        str(tiny_data),
        "--max_steps",
        "3",
    ]
    common += ["--precision", "32-true", "--device", "cpu"]
    hub = "config_hub/finetune/llama-2-7b"
    for name, config, extra in (
        ("lora_baseline_exp", "lora_baseline.yaml", []),
        ("skip2lora_4blocks_exp", "skip2lora.yaml", ["--skip2lora_block_indices", "[0, 1, 2]"]),
        ("skip2lora_6blocks_exp", "skip2lora.yaml", ["--skip2lora_block_indices", "[0, 1, 2, 3]"]),
    ):
        out_dir = f"out/finetune/{name}"
        status, _, err = run(
            "train", "--config", f"{hub}/{config}", "--out_dir", out_dir, *common, *extra
        )
        assert status == 0, err
        metrics = pd.read_csv(tmp_path / out_dir / "logs/version_0/metrics.csv")
        assert metrics["step"].tolist() == [0, 3]
    status, text, _ = run("report", "--results", "out/finetune", "--lang", "en")
    assert status == 0
    assert "Skip2-LoRA (4 blocks)" in text
    assert (tmp_path / "out/finetune/figures/losses.en.svg").stat().st_size > 5000


def test_json_goes_to_stdout_alone(run, tiny_checkpoint, tiny_data):
    status, out, err = run(
        *("train", "--checkpoint-dir", str(tiny_checkpoint), "--data", str(tiny_data)),
        *("--max-steps", "2", "--blocks", "0,1", "--json"),
    )
    summary = json.loads(out)
    assert status == 0
    assert (summary["steps"], summary["blocks"]) == (2, [0, 1])
    assert "Skip2-LoRA (2 blocks), blocks 0-1 of 4: tiny" in err


def test_bench_takes_blocks_repeatedly(run, tiny_checkpoint, monkeypatch):
    memory = {"status": "ok", "peak_memory_bytes": 1}  # whose processes are tested by themselves
    monkeypatch.setattr("skip2bench.bench.run.measure_memory", lambda _: memory)
    status, out, err = run(
        *(
            "bench",
            "--model",
            str(tiny_checkpoint),
            "--blocks",
            "0",
            "--blocks",
            "1,2",
            "--methods",
            "lora,skip",
        ),
        *("--rounds", "1", "--iterations", "1", "--seq-length", "8", "--batch-size", "1", "--json"),
    )
    assert status == 0, err
    assert [entry["blocks"] for entry in json.loads(out)["configurations"]] == [None, [0], [1, 2]]


def test_report_writes_to_a_file(run, tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "data" / "results", tmp_path / "results")
    status, out, _ = run("report", "--output", "deep/report.md")
    assert (status, out) == (0, "")
    assert "評価レポート" in (tmp_path / "deep" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("output", [".", "taken/report.md"])
def test_a_report_that_cannot_be_written_is_an_error(run, tmp_path, output):
    (tmp_path / "taken").write_text("")
    shutil.copytree(Path(__file__).parents[1] / "data" / "results", tmp_path / "results")
    status, _, err = run("report", "--output", output)
    assert status == 1
    assert err.startswith("error: cannot write ")
    assert "choose another --" in err
    assert err.count("\n") == 1


def test_kept_caches_are_listed_verified_and_removed(run, tmp_path, tiny_checkpoint, tiny_data):
    train = ["train", "--checkpoint-dir", str(tiny_checkpoint), "--data", str(tiny_data)]
    train += ["--blocks", "0,2", "--max-steps", "2", "--device", "cpu", "--cache-dir", "kept"]
    assert run(*train)[0] == 0
    cache = ["--cache-dir", "kept"]
    status, listed, _ = run("cache", "list", *cache)
    assert status == 0
    assert "tiny.json, train" in listed
    assert "0 2 3" in listed  # the last block is always there
    assert "2 caches" in listed
    status, out, _ = run("cache", "verify", *cache)
    assert (status, out.count(" ok\n")) == (0, 2)
    name = next(path.parent.name for path in (tmp_path / "kept").glob("*/manifest.json"))
    with (tmp_path / "kept" / name / "targets.bin").open("ab") as file:
        file.write(b"x")
    status, out, err = run("cache", "verify", *cache)
    assert status == 1
    assert f"{name} damaged: targets.bin has" in out
    assert err.startswith("error: damaged: ")
    assert run("cache", "remove", name, *cache)[1] == f"{name} removed\n"
    assert "1 caches" in run("cache", "list", *cache)[1]
    assert run("cache", "remove", name, *cache)[0] == 1
    assert run("cache", "remove", "--all", *cache)[0] == 0
    assert "0 caches" in run("cache", "list", *cache)[1]
    assert run("cache", "verify", *cache)[:2] == (0, f"no cache in {cache[-1]}\n")


def test_cache_flags_without_a_cache_are_named(run, tiny_checkpoint, tiny_data):
    train = ["train", "--checkpoint-dir", str(tiny_checkpoint), "--data", str(tiny_data)]
    train += ["--method", "skip", "--max-steps", "1", "--device", "cpu", "--cache-tier", "ram"]
    assert "no effect here: cache_tier (skip has no cache)" in run(*train)[2]


def test_merging_a_skip_adapter_says_why_not(run, tiny_checkpoint, tiny_data):
    common = [
        "--checkpoint-dir",
        str(tiny_checkpoint),
        "--data",
        str(tiny_data),
        "--max-steps",
        "1",
    ]
    run("train", "--out-dir", "skip", "--blocks", "0", *common)
    status, _, err = run("merge", "skip/final")
    assert status == 1
    assert err.startswith(
        "error: a Skip adapter cannot be merged into weights of the same shapes: "
    )
    run("train", "--out-dir", "lora", "--method", "lora", *common)
    status, out, _ = run("merge", "lora/final")
    assert out == "lora/final/lit_model.pth\n"
    assert status == 0
    assert out.strip().endswith("lora/final/lit_model.pth")


ERRORS = [
    (
        ("train", "--resume", "--out-dir", "gone"),
        "error: 'gone' holds no run to go on with; check the path, or give the flags of the run to "
        "start it there\n",
    ),
    (
        ("train", "--blocks", "0-3"),
        "error: blocks '0-3' is no list of block numbers; give e.g. 0,1,2,3, or all, ",
    ),
    (("train", "--blocks", "8"), "error: block 8 does not exist; the model has blocks 0 to 7\n"),
    (("train", "--method", "dora"), "error: method is 'dora'; choose from lora, lora-all, "),
    (("train", "--epochs", "0"), "error: epochs is 0; give 1 or more\n"),
    (
        ("train", "--checkpoint-dir", "none"),
        "error: checkpoint folder 'none' does not exist; get one with ",
    ),
    (
        ("train", "--data", "none.json"),
        "error: data file 'none.json' does not exist; check the path\n",
    ),
    (
        ("train", "--config", "none.yaml"),
        "error: config file 'none.yaml' does not exist; check the path\n",
    ),
    (
        ("bench", "--model", "gpt-5"),
        "error: model 'gpt-5' is neither 'pystd', a checkpoint folder nor ",
    ),
    (
        ("bench", "--methods", "lora,dora"),
        "error: methods is 'dora'; choose from lora, lora-all, ",
    ),
    (("bench", "--seq-length", "513"), "error: seq_length is 513; give 2 to 512, the context\n"),
    (
        ("bench", "--model", "."),
        "error: checkpoint folder '.' lacks lit_model.pth, model_config.yaml",
    ),
    (
        ("train", "--precision", "16-true", "--device", "cpu"),
        "error: precision '16-true' needs a GPU",
    ),
    (("report", "--lang", "fr"), "error: lang is 'fr'; choose from ja, en\n"),
    (("report",), "error: results folder 'results' does not exist; run 'skip2bench bench' first\n"),
    (
        ("train", "--cache-tier", "tape"),
        "error: cache_tier is 'tape'; choose from auto, device, ram, disk\n",
    ),
    (
        ("train", "--cache-dtype", "int4"),
        "error: cache_dtype is 'int4'; choose from model, bf16, int8\n",
    ),
    (
        ("train", "--cache-max-bytes", "lots"),
        "error: cache_max_bytes is 'lots'; give bytes, or such as 500MB or 2GiB\n",
    ),
    (
        ("compare", "--methods", "skip2"),
        "error: the baseline 'lora' is not among the methods; add it, or set --baseline\n",
    ),
    (("compare", "--methods", "lora,bias"), "error: method 'bias' trains biases, and 'pystd' has"),
    (
        ("compare", "--peers", "trl"),
        "error: peers is 'trl'; choose from litgpt, peft, peft-dora, peft-rslora\n",
    ),
    (("compare", "--seeds", "0"), "error: seeds is 0; give 1 or more\n"),
    (("compare", "--learning-rates", "1e-3,x"), "error: learning_rates is 'x'; give a number"),
    (("compare", "--blocks", "0,8"), "error: block 8 does not exist; the model has blocks 0 to 7"),
    (("compare", "--config", "none.yaml"), "error: config file 'none.yaml' does not exist; check "),
    (("compare", "--data", "alpaca.json"), "error: data file 'alpaca.json' does not exist; check"),
    (("cache", "list", "--cache-dir", "none"), "error: cache folder 'none' does not exist\n"),
    (("cache", "verify", "--cache-dir", "none"), "error: cache folder 'none' does not exist\n"),
    (("cache", "remove", "--cache-dir", "none"), "error: say which caches to remove: "),
    (("merge", "none"), "error: 'none' holds no adapter; give the 'final' folder of a lora run\n"),
]


@pytest.mark.parametrize(("arguments", "text"), ERRORS)
def test_errors_are_one_line_with_a_remedy_and_write_nothing(run, tmp_path, arguments, text):
    status, out, err = run(*arguments)
    last = err.splitlines()[-1] + "\n"
    assert (status, out) == (1, "")
    assert last.startswith(text)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["bench", "compare"])
def test_resuming_what_is_no_training_run_says_so(run, tmp_path, kind):
    folder = tmp_path / "x"
    folder.mkdir()
    summary = {"schema_version": 1, "kind": kind, "status": "ok"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("flow: minimal\nmodel: pystd\n")
    status, _, err = run("train", "--resume", "--out-dir", "x")
    assert status == 1
    assert err == "error: 'x' holds no run of skip2bench train; choose another --out-dir\n"


@pytest.mark.parametrize(
    "code",
    [
        # in the middle of loading the command line
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'skip2bench.cli.app':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n",
        # swallowed by a library that fails by it a moment later
        "import os, signal, skip2bench.cli.app as cli\n"
        "def load(*_):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        raise ImportError('cannot load module more than once per process') from None\n"
        "cli.load_compare_config = load\n",
        # a termination, which ends as an interruption
        "import os, signal, skip2bench.cli.app as cli\n"
        "cli.load_compare_config = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n",
    ],
)
def test_an_interrupt_while_loading_leaves_no_traceback(code):
    code += (
        "import sys\n"
        "from skip2bench.__main__ import main\n"
        "sys.argv = ['skip2bench', 'compare']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [("train", "--no-such-flag"), ("train", "--epochs", "three"), ("tarin",), ("merge",)],
)
def test_wrong_usage_exits_with_2(run, arguments):
    status, _, err = run(*arguments)
    assert status == 2
    assert "Usage: skip2bench" in err


def test_the_recorded_config_is_valid_yaml(run, tiny_checkpoint, tiny_data, tmp_path):
    run(
        *("train", "--checkpoint-dir", str(tiny_checkpoint), "--data", str(tiny_data)),
        *("--max-steps", "1", "--blocks", "[0]", "--out-dir", "x"),
    )
    config = yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())
    assert config["blocks"] == "[0]"
    assert config["max_steps"] == 1


@pytest.mark.parametrize("other", ["--checkpoint_dir=b", "--checkpoint-dir"])
def test_the_model_is_named_once(other):
    assert cli.normalise_flags(["train", "--model", "a"]) == ["train", "--model", "a"]
    with pytest.raises(Skip2BenchError, match="mean the same; give one of them"):
        cli.normalise_flags(["train", "--model", "a", other, "b"])
