"""What `import skip2bench` offers to a notebook."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skip2bench


@pytest.mark.parametrize("name", skip2bench._HOMES)
def test_a_public_name_is_documented_where_it_is_defined(name):
    thing = getattr(skip2bench, name)
    assert thing.__doc__
    assert thing.__module__ == f"skip2bench.{skip2bench._HOMES[name]}"
    assert name in dir(skip2bench)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'train_model'"):
        _ = skip2bench.train_model


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse(Path(skip2bench.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skip2bench.")
        for alias in node.names
    }
    assert seen == {name: f"skip2bench.{home}" for name, home in skip2bench._HOMES.items()}


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys; from skip2bench import Skip2BenchError, TrainConfig; TrainConfig();"
        "print(sorted({'torch', 'litgpt', 'lightning', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_notebook_trains_and_loads_what_it_trained(tiny_checkpoint, tiny_data, tmp_path):
    import torch

    config = skip2bench.TrainConfig(
        checkpoint_dir=tiny_checkpoint,
        data=str(tiny_data),
        out_dir=tmp_path / "run",
        blocks="0,1",
        max_steps=2,
        device="cpu",
    )
    summary = skip2bench.run_training(config)
    assert summary.status == "ok"
    model = skip2bench.load_skip_model(Path(summary.folder) / "final")
    assert isinstance(model, skip2bench.SkipGPT)
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()
