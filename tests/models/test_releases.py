"""Checkpoints that other releases of LitGPT wrote: the same model in every command."""

import shutil

import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT
from tiny import small_config

from skip2bench.errors import Skip2BenchError
from skip2bench.models.base import load_checkpoint, load_config, read_base_weights
from skip2bench.models.releases import bring_config, bring_weights, is_older
from skip2bench.models.weights import check_weights


@pytest.fixture
def older(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, its configuration changed."""

    def make(**changes):
        folder = tmp_path / "older"
        shutil.copytree(tiny_checkpoint, folder)
        path = folder / "model_config.yaml"
        content = yaml.safe_load(path.read_text()) | changes
        path.write_text(yaml.safe_dump(content))
        return folder

    return make


def test_empty_keys_of_other_releases_are_dropped(older, tiny_checkpoint):
    folder = older(sliding_window_layer_placing=None, some_new_switch=False)
    assert is_older(yaml.safe_load((folder / "model_config.yaml").read_text()))
    assert load_config(folder) == load_config(tiny_checkpoint)


def test_keys_are_mapped_where_their_meaning_is_known():
    plain = {"n_layer": 4, "_norm_class": "RMSNorm", "_mlp_class": "LLaMAMLP", "org": "x"}
    assert bring_config(plain) == {
        **{"n_layer": 4, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
    }
    placed = bring_config({"n_layer": 4, "sliding_window_layer_placing": "interleaved"})
    assert placed["sliding_window_indices"] == [1, 0, 1, 0]
    assert "sliding_window_indices" not in bring_config(
        {"n_layer": 4, "sliding_window_layer_placing": "all", "sliding_window_layer_stride": 1}
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sliding_window_layer_placing": "spiral"}, "made by an older LitGPT"),
        ({"flux_capacitor": 1.21}, "flux_capacitor is 1.21, which has no place here"),
    ],
)
def test_what_would_be_lost_is_refused(older, changes, says):
    with pytest.raises(Skip2BenchError, match=says):
        load_config(older(**changes))


@pytest.mark.parametrize("architecture", ["llama-3", "pythia", "falcon-parallel"])
def test_attention_of_older_releases_is_brought_over(architecture, tmp_path):
    """Group by group until 0.5.4: queries of a group, its key, its value."""
    config = small_config(architecture)
    torch.manual_seed(0)
    model = GPT(config)
    wanted = model.state_dict()
    groups, size = config.n_query_groups, config.head_size
    per_group = config.n_head // groups
    old = {}
    for name, value in wanted.items():
        if ".attn.qkv." not in name:
            old[name] = value
            continue
        queries, keys, values = value.split([config.n_head * size, groups * size, groups * size])
        parts = []
        for group in range(groups):
            first = group * per_group * size
            parts += [queries[first : first + per_group * size]]
            parts += [side[group * size : (group + 1) * size] for side in (keys, values)]
        old[name.replace(".attn.qkv.", ".attn.attn.")] = torch.cat(parts)
    found = bring_weights(old, config)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_every_reader_sees_the_same_names(tiny_checkpoint, older):
    folder = older()
    weights = torch.load(folder / "lit_model.pth", weights_only=True)
    config = load_config(folder)
    assert isinstance(config, Config)
    # one head a group, as many groups as heads: three rows of blocks, which stand otherwise
    old = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            size = config.head_size
            parts = value.view(3, config.n_head, size, -1).transpose(0, 1).reshape(value.shape)
            old[name.replace(".attn.qkv.", ".attn.attn.")] = parts
        else:
            old[name] = value
    torch.save(old, folder / "lit_model.pth")
    check_weights(folder / "lit_model.pth", config)
    found = read_base_weights(folder)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    base = load_checkpoint(folder, torch.device("cpu"), None)
    assert all(torch.equal(base.weights[name], weights[name]) for name in weights)
