"""What `export` and `generate` give: `export.json`, and answers as JSON."""

from skip2bench.io.record import Bytes, Count, Counts, FromZero, Loss, Number, Record, Seconds, Text


class ExportResult(Record):
    """What `export` found."""

    to: Text
    """litgpt, hf, gguf or peft."""
    label: Text
    """What was trained."""
    model: Text
    """Name of the base."""
    source: Text
    """The run."""
    folder: Text
    """What was made."""
    dtype: Text
    """Of the weights."""
    base_width: Count
    """Channels of the base's residual stream."""
    width: Count
    """Channels of the exported model's."""
    added_channels: Count
    """Of them, those that carry what Skip adapters read."""
    epsilon: FromZero | None = None
    """What they are multiplied by; None where nothing was added."""
    blocks: Counts | None = None
    rank: Count | None = None
    """Of a PEFT adapter."""
    parameters: Count
    base_parameters: Count
    """What LitGPT counts, with a tied head twice."""
    size_bytes: Bytes
    """Of all files."""
    data: Text
    """Whose validation samples were compared on."""
    positions: Count
    """Of them, those that were compared."""
    checked_with: Text
    """What ran the exported files."""
    logit_scale: FromZero
    """The largest absolute logit of the original."""
    max_logit_difference: FromZero
    relative_difference: FromZero
    """As a share of `logit_scale`."""
    same_token_ratio: Number
    """Positions whose most likely token is the same."""
    original_val_loss: Loss
    exported_val_loss: Loss
    export_seconds: Seconds
    check_seconds: Seconds
    prompt_style: Text


class Reply(Record):
    """One answer."""

    text: Text
    tokens: Count
    seconds: Seconds


class Exchange(Record):
    """A prompt and its answers."""

    prompt: Text
    """As it was given."""
    input: Text | None
    base: Reply | None
    """Where it was asked too."""
    adapted: Reply
