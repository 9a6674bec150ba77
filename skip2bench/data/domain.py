"""Held-out text of the base model's own domain: what fine-tuning makes it forget.

Forgetting is the mean loss of a next token there after training minus before, in nats. It is
measured outside every clock.
"""

from functools import cache
from itertools import islice
from pathlib import Path

import torch
from litgpt.tokenizer import Tokenizer

from skip2bench.data.samples import Samples
from skip2bench.data.stdlib import read_modules, strip_docstrings
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.io.text import read_text

WINDOW_TOKENS = 256
MAX_WINDOWS = 64
MAX_CHARACTERS = 20_000_000
AUTO, NONE = "auto", "none"


def load_domain(
    source: str, base_folder: Path, tokenizer: Tokenizer, max_seq_length: int
) -> Samples | None:
    """Cut held-out text into at most MAX_WINDOWS windows, spread over all of it.

    Args:
        source: A UTF-8 text file; "auto" for the text that belongs to the embedded model (the
            standard library's packages that its pretraining left out; other models have none);
            "none" for no text.
        base_folder: The base model's checkpoint folder.
        tokenizer: The base model's.
        max_seq_length: No window has more tokens.

    Returns:
        Samples whose every token is supervised; None where there is no text.

    Raises:
        Skip2BenchError: the file cannot be read or holds too little text.
    """
    if source == NONE or (source == AUTO and base_folder != embedded_checkpoint()):
        return None
    text = held_out_source() if source == AUTO else read_text(Path(source), "domain_text")
    if len(text) > MAX_CHARACTERS:
        raise Skip2BenchError(
            f"domain_text {source!r} has {len(text):,} characters; cut it to {MAX_CHARACTERS:,}: "
            f"{MAX_WINDOWS} windows of {WINDOW_TOKENS} tokens are taken from it"
        )
    tokens = tokenizer.encode(text, bos=False, eos=False)
    size = min(WINDOW_TOKENS, max_seq_length)
    windows = [window for window in tokens.split(size) if len(window) == size]
    if not windows:
        raise Skip2BenchError(
            f"domain_text {source!r} has {len(tokens)} tokens; give a text of at least {size}"
        )
    stride = max(1, len(windows) // MAX_WINDOWS)
    chosen = [window.to(torch.int64) for window in islice(windows, 0, None, stride)][:MAX_WINDOWS]
    return Samples(input_ids=chosen, labels=chosen)


@cache
def held_out_source() -> str:
    """Source of the validation packages without docstrings, as pretraining validated on it.

    It takes seconds, and is made once a process.
    """
    modules = [m for m in read_modules() if m.is_validation and m.parse() is not None]
    return "\n".join(strip_docstrings(module.source) for module in modules)
