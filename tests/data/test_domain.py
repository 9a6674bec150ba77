import pytest
import torch
from litgpt.tokenizer import Tokenizer

from skip2bench.data.domain import MAX_WINDOWS, WINDOW_TOKENS, load_domain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint


def test_the_embedded_model_brings_the_text_it_was_validated_on():
    folder = embedded_checkpoint()
    domain = load_domain("auto", folder, Tokenizer(folder), 512)
    assert len(domain) == MAX_WINDOWS
    assert set(domain.lengths) == {WINDOW_TOKENS}
    assert domain.supervised_counts == [WINDOW_TOKENS - 1] * MAX_WINDOWS


def test_another_model_has_no_text_of_its_own(tiny_checkpoint):
    assert load_domain("auto", tiny_checkpoint, Tokenizer(tiny_checkpoint), 96) is None
    assert load_domain("none", embedded_checkpoint(), None, 96) is None


def test_windows_cover_the_whole_of_a_file(tiny_checkpoint, tmp_path):
    tokenizer = Tokenizer(tiny_checkpoint)
    text = "".join(chr(97 + i % 26) for i in range(400 * 96))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8-sig")
    domain = load_domain(str(tmp_path / "text.txt"), tiny_checkpoint, tokenizer, 96)
    tokens = tokenizer.encode(text, bos=False, eos=False)
    assert len(domain) == MAX_WINDOWS
    assert torch.equal(domain.input_ids[0], tokens[:96])
    stride = len(tokens) // 96 // MAX_WINDOWS
    assert torch.equal(domain.input_ids[-1], tokens.split(96)[63 * stride])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; check the path"),
        (b"\xff\xfe\xff", "is not UTF-8 but perhaps UTF-16; convert it: iconv"),
        (b"too short", "has .* tokens; give a text of at least 96"),
    ],
)
def test_text_that_is_no_use_is_an_error(content, message, tiny_checkpoint, tmp_path):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Skip2BenchError, match=message):
        load_domain(str(path), tiny_checkpoint, Tokenizer(tiny_checkpoint), 96)
