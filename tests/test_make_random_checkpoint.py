import json
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from litgpt.config import Config
from litgpt.tokenizer import Tokenizer
from tiny import TINY

from skip2bench.errors import Skip2BenchError
from skip2bench.models.base import check_checkpoint, load_checkpoint, load_config

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_random_checkpoint.py"


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make(script, monkeypatch, capsys):
    """Run the script's main; its stdout."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return run


def test_a_checkpoint_of_a_known_shape(make, tmp_path):
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        printed = make("pythia-14m", "--out-dir", folder, "--seed", seed)
        assert printed == f"14,067,712 parameters in bf16, in {folder}\n"
    check_checkpoint(folders[0])
    config = load_config(folders[0])
    assert (config.name, config.n_layer, config.n_embd) == ("pythia-14m", 6, 128)
    assert Tokenizer(folders[0]).encode("def f(): pass").max() < config.vocab_size
    one, same, other = (
        load_checkpoint(folder, torch.device("cpu"), None).weights for folder in folders
    )
    assert {weight.dtype for weight in one.values()} == {torch.bfloat16}
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        if weight.dim() > 1:
            assert not torch.equal(weight, other[name])
            assert 0.015 < weight.float().std() < 0.025
        else:
            assert set(weight.tolist()) == {0.0 if name.endswith("bias") else 1.0}


def test_an_unknown_name_is_one_line(make, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: model 'nobody' is neither"):
        make("nobody", "--out-dir", tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(script, tmp_path, tiny_checkpoint):
    source = shutil.copytree(tiny_checkpoint, tmp_path / "more")
    content = json.loads((source / "tokenizer.json").read_text())
    added = content["added_tokens"][0]
    content["added_tokens"] += [added | {"id": 320 + i, "content": f"<{i}>"} for i in range(5)]
    (source / "tokenizer.json").write_text(json.dumps(content))
    size = Tokenizer(source).processor.get_vocab_size()
    fitting, small = (Config(**TINY, vocab_size=n, padded_vocab_size=n) for n in (size, size - 1))
    with pytest.raises(Skip2BenchError) as raised:
        script.copy_tokenizer(source, tmp_path, small)
    assert str(raised.value) == (
        f"the tokenizer in {str(source)!r} has {size} tokens and 'tiny' {size - 1}; give another "
        "--tokenizer"
    )
    script.copy_tokenizer(source, tmp_path, fitting)
    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "tokenizer_config.json").is_file()
