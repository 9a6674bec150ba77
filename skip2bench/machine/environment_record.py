"""`environment.json`: what a run ran on. `environment` finds it out; no torch here, to read it."""

from skip2bench.io.record import Bytes, Count, Flag, FromOne, Number, Numbers, Record, Text


class GpuRecord(Record):
    """A run's GPU, its driver, and the switches of its libraries."""

    name: Text | None = None
    memory_bytes: Bytes | None = None
    compute_capability: Text | None = None
    driver: Text | None = None
    power_limit_watts: Number | None = None
    cuda: Text | None = None
    cudnn: Count | None = None
    allow_tf32: Flag | None = None
    cudnn_allow_tf32: Flag | None = None
    float32_matmul_precision: Text | None = None
    cudnn_benchmark: Flag | None = None
    cudnn_deterministic: Flag | None = None


class DataRecord(Record):
    """A run's samples; the hash is over their token ids and labels."""

    name: Text | None = None
    samples: Count | None = None
    sha256: Text | None = None


class CheckpointRecord(Record):
    """The base model's files."""

    name: Text | None = None
    sha256: Text | None = None
    model_config_sha256: Text | None = None


class Environment(Record):
    """Hardware, versions, commit, load: enough to judge whether two runs compare."""

    started_at: Text | None = None
    command: Text | None = None
    """The whole command line, to repeat the run."""
    platform: Text | None = None
    processor: Text | None = None
    cpu_count: FromOne | None = None
    """Cores that the process may run on."""
    memory_bytes: Bytes | None = None
    gpu: GpuRecord | None = None
    python: Text | None = None
    torch: Text | None = None
    litgpt: Text | None = None
    lightning: Text | None = None
    skip2bench: Text | None = None
    threads: Count | None = None
    commit: Text | None = None
    dirty: Flag | None = None
    """True where the checkout had changes."""
    load_average: Numbers | None = None
    """Over 1, 5 and 15 minutes, when the run began."""
    bitsandbytes: Text | None = None
    data: DataRecord | None = None
    checkpoint: CheckpointRecord | None = None
    ranks: Count | None = None
    nodes: Count | None = None
    earlier_sessions: tuple["Environment", ...] | None = None
    """Of the processes that worked on the run before it was resumed."""
