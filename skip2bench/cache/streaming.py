"""The backbone one block at a time: every sample passes block k before any passes block k + 1.

A block's weights are mapped from the checkpoint file, converted if the run has another dtype, used
for all samples, and dropped; embedding, final norm and head are mapped likewise. Hidden states on
their way to the next block stay in memory up to a bound, beyond it in a scratch file that is read
and written a batch at a time. So memory holds one block, one batch, and that bound, whatever the
size of the model. The forward pass is LitGPT's own, over a model in whose other blocks' places
stand modules that pass on what they are given; numbers are those of `skip_cache.fill`, bit for bit.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor, nn

from skip2bench.cache.arrays import Layout, MemoryWriter, Space, raw_bytes
from skip2bench.cache.prefix import Backbone
from skip2bench.cache.skip_cache import BuildOrder, supervised_rows
from skip2bench.data.samples import Samples, collate
from skip2bench.models.base import Base, load_checkpoint
from skip2bench.models.skip import SkipGPT

_EMBEDDING = "transformer.wte."
_CPU = torch.device("cpu")


def load_without_blocks(folder: Path, device: torch.device, dtype: torch.dtype) -> Base:
    """A checkpoint with final norm and head alone; blocks and embedding stay on the meta device.

    Raises:
        Skip2BenchError: files are missing or unreadable.
    """
    everything = load_checkpoint(folder, torch.device("meta"), dtype)
    names = tuple(key for key in everything.weights if not _is_streamed(key))
    rest = load_checkpoint(folder, device, dtype, names)
    return replace(everything, weights=everything.weights | rest.weights)


def _is_streamed(name: str) -> bool:
    return name.startswith(("transformer.h.", _EMBEDDING))


@dataclass(frozen=True, kw_only=True)
class Task:
    """The samples of one side that pass the blocks, and where their features go."""

    samples: Samples
    order: BuildOrder
    layout: Layout
    """With the blocks that the model reads."""
    space: Space
    timed: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around the work of this side."""
    on_batch: Callable[[Sequence[int]], None] = lambda _ids: None
    """Called with the samples of each batch after each block."""


@dataclass(kw_only=True)
class StreamedBackbone:
    """The frozen backbone of a Skip model whose blocks are in a file."""

    model: SkipGPT
    """Made of `load_without_blocks`."""
    folder: Path
    """The checkpoint."""
    device: torch.device
    dtype: torch.dtype
    """Of the weights while they are used."""
    scratch: Path
    """Folder for hidden states that do not fit into memory."""
    figures: dict[str, int] = field(default_factory=dict)
    """Of the last `fill`, for `summary.json`."""

    @property
    def layout(self) -> Layout:
        """Of all features as the model makes them, none of them projected."""
        return Layout(
            blocks=self.model.feature_blocks,
            n_embd=self.model.config.n_embd,
            dtype=self.dtype,
            compute_dtype=self.dtype,
        )

    def fill(self, tasks: Sequence[Task]) -> None:
        """Pass the samples of all tasks through the blocks and store what the layouts ask for.

        Every block is read once, whatever the number of tasks; reading it is the first one's time.

        Raises:
            OSError: the scratch file cannot be written.
        """
        was_training = self.model.training
        self.model.eval()
        prefixes: dict[int, Tensor] = {}
        largest = 0
        with HiddenStates(self.scratch / "hidden_states.bin") as states:
            for k in range(self.model.config.n_layer):
                with _OneBlock(self, k, tasks[0].timed) as block:
                    largest = max(largest, block.nbytes)
                    for side, task in enumerate(tasks):
                        with task.timed():
                            _pass_block(block, side, task, states, prefixes)
            self.figures = {
                "block_bytes": largest,
                "hidden_states_bytes": states.memory_bytes + states.disk_bytes,
                "hidden_states_disk_bytes": states.disk_bytes,
            }
        self.model.train(was_training)

    def compute_samples(self, samples: Samples, ids: Sequence[int]) -> list[Tensor]:
        """Features (n, K', d) of the supervised positions of each sample, run by itself."""
        counts = [samples.supervised_counts[i] for i in ids]
        space = MemoryWriter(self.layout, sum(counts), self.device)
        alone = BuildOrder(prefix=torch.empty(0, dtype=torch.long), buckets=[[i] for i in ids])
        self.fill([Task(samples=samples, order=alone, layout=self.layout, space=space)])
        return list(torch.split(space.finish().tensors["features"], counts))


class _OneBlock:
    """Within, a model's forward pass runs one block, on hidden states that are given to it."""

    def __init__(
        self, backbone: StreamedBackbone, k: int, timed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """`timed` is entered while the weights are loaded."""
        self._backbone, self.k, self._timed = backbone, k, timed
        self.model, self.device = backbone.model, backbone.device
        self._blocks, self._embedding = self.model.transformer.h, self.model.transformer.wte
        self._before = _Given()
        self.nbytes = 0
        """Bytes of the weights as they are used."""

    @property
    def is_first(self) -> bool:
        return self.k == 0

    @property
    def is_last(self) -> bool:
        return self.k + 1 == len(self._blocks)

    def __enter__(self) -> "_OneBlock":
        transformer, backbone = self.model.transformer, self._backbone
        prefix = f"transformer.h.{self.k}."
        with self._timed():
            loaded = load_checkpoint(backbone.folder, self.device, backbone.dtype, (prefix,))
            weights = {key.removeprefix(prefix): w for key, w in loaded.weights.items()}
            self.nbytes = sum(weight.nbytes for weight in weights.values())
            self._blocks[self.k].load_state_dict(weights, assign=True)
            transformer.wte = self._make_embedding()
        passing = [_Given() for _ in self._blocks]
        transformer.h = nn.ModuleList(
            self._blocks[k] if k == self.k else module for k, module in enumerate(passing)
        )
        self._before = passing[self.k - 1]
        return self

    def __exit__(self, *_: object) -> None:
        self.model.transformer.h, self.model.transformer.wte = self._blocks, self._embedding
        self._blocks[self.k].to("meta")  # with the last reference the file is unmapped

    def run(self, hidden: Tensor | None, idx: Tensor) -> list[Tensor]:
        """Pass a batch through the block.

        Args:
            hidden: Output of the block before, (B, T, d); None for the first block.
            idx: Token ids, (B, T).

        Returns:
            The block's output, (B, T, d).
        """
        self._before.hidden = hidden
        output = self.model.run_blocks(idx)
        self._before.hidden = None
        return [output]

    def _make_embedding(self) -> nn.Module:
        backbone = self._backbone
        if self.k > 0:
            return _Nothing(self.model.config.n_embd, backbone.dtype)
        loaded = load_checkpoint(backbone.folder, _CPU, None, (_EMBEDDING,))
        weights = {key.removeprefix(_EMBEDDING): w for key, w in loaded.weights.items()}
        table = copy.deepcopy(self._embedding)
        table.load_state_dict(weights, assign=True)
        return _Lookup(table, backbone.dtype)


Key = tuple[int, int]
"""Which side, and which of its batches."""


class HiddenStates:
    """One tensor a batch, replaced block after block."""

    def __init__(self, path: Path, memory_bytes: int | None = None) -> None:
        """Nothing is made yet.

        Args:
            path: The scratch file, made when it is needed and removed at the end.
            memory_bytes: What may be held in memory; None for MEMORY_BYTES.
        """
        self._path = path
        self._limit = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._held: dict[Key, Tensor] = {}
        self._places: dict[Key, _Place] = {}
        self._file: BinaryIO | None = None
        self.memory_bytes = 0
        """Held in memory."""
        self.disk_bytes = 0
        """Held in the file."""

    def __enter__(self) -> "HiddenStates":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def write(self, key: Key, hidden: Tensor) -> None:
        """Keep a batch in the place of what its key had before.

        Raises:
            OSError: the file cannot be written.
        """
        if key in self._held:
            self._held[key].copy_(hidden)
        elif key in self._places:
            self._write_file(self._places[key].offset, hidden)
        elif self.memory_bytes + hidden.nbytes <= self._limit:
            self._held[key] = hidden.to("cpu", copy=True)
            self.memory_bytes += hidden.nbytes
        else:
            self._places[key] = _Place(
                offset=self.disk_bytes, shape=hidden.shape, dtype=hidden.dtype
            )
            self._write_file(self.disk_bytes, hidden)
            self.disk_bytes += hidden.nbytes

    def read(self, key: Key) -> Tensor:
        """A copy of what is kept, on the CPU.

        Always in memory of its own, aligned as a block's own output would be.

        Raises:
            OSError: the file cannot be read.
        """
        if key in self._held:
            return self._held[key].clone()
        place = self._places[key]
        hidden = torch.empty(place.shape, dtype=place.dtype)
        assert self._file is not None
        self._file.seek(place.offset)
        if self._file.readinto(raw_bytes(hidden)) != hidden.nbytes:  # type: ignore[attr-defined]
            raise OSError(f"{self._path.name} ends before {place.offset + hidden.nbytes} bytes")
        return hidden

    def _write_file(self, offset: int, hidden: Tensor) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w+b")
        self._file.seek(offset)
        self._file.write(raw_bytes(hidden.cpu().contiguous()))


def _pass_block(
    block: _OneBlock, side: int, task: Task, states: HiddenStates, prefixes: dict[int, Tensor]
) -> None:
    """Pass one side's samples through a block; its shared prefix comes first, as in `prefix`."""
    hidden: Tensor | None = prefixes.get(side)

    def run(idx: Tensor) -> list[Tensor]:
        return block.run(hidden, idx)

    backbone = Backbone(block.model, task.order.prefix, block.device, run)
    if backbone.prefix_outputs:
        (prefixes[side],) = backbone.prefix_outputs
    first_row = 0
    for number, ids in enumerate(task.order.buckets):
        input_ids, labels = collate(task.samples, ids)
        rows, targets = supervised_rows(labels)
        hidden = None if block.is_first else states.read((side, number)).to(block.device)
        (output,), places = backbone.compute(input_ids, rows)
        if not block.is_last:
            own = len(ids) * (input_ids.size(1) - len(task.order.prefix))
            states.write((side, number), output[:own].view(len(ids), -1, output.size(-1)))
        if block.k in (*task.layout.blocks, *task.layout.projected_blocks):
            space = task.space.view(first_row, len(rows))
            _store(block, task.layout, output, places, targets, space)
        first_row += len(rows)
        task.on_batch(ids)


@torch.inference_mode()
def _store(
    block: _OneBlock,
    layout: Layout,
    output: Tensor,
    places: Tensor,
    targets: Tensor,
    space: dict[str, Tensor],
) -> None:
    if block.k in layout.blocks:
        layout.encode_block(layout.blocks.index(block.k), output, places, space)
    if block.k in layout.projected_blocks:
        k, rows = layout.projected_blocks.index(block.k), block.model.adapters.projection
        assert rows is not None
        projected = torch.nn.functional.linear(output.index_select(0, places), rows[k])
        everything = torch.arange(len(places), device=places.device)
        layout.encode_block(k, projected, everything, space, "projected")
    if block.is_last:
        space["targets"].copy_(targets)
        if layout.n_logits:
            space["base_logits"].copy_(block.model.base_logits(output.index_select(0, places)))


class _Given(nn.Module):
    """Stands in a block's place: gives what it was given, else passes on what comes."""

    hidden: Tensor | None = None

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x if self.hidden is None else self.hidden


class _Nothing(nn.Module):
    """Stands in the embedding's place where its output is not used: zeros that take no memory."""

    def __init__(self, n_embd: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._n_embd, self._dtype = n_embd, dtype

    def forward(self, idx: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=self._dtype, device=idx.device)
        return zero.expand(*idx.shape, self._n_embd)


class _Lookup(nn.Module):
    """The embedding, mapped in the file's dtype on the CPU: only what is looked up is converted."""

    def __init__(self, table: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._table, self._dtype = table, dtype

    def forward(self, idx: Tensor) -> Tensor:
        found: Tensor = self._table(idx.cpu())
        return found.to(device=idx.device, dtype=self._dtype)


MEMORY_BYTES = 128 * 2**20
"""What is held in memory; the rest goes to the file."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a batch lies in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
