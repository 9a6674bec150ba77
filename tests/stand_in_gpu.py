"""A device in the place of CUDA's: its work takes the time that a test says, beside the host's."""

import pytest
import torch


class StandInGpu:
    """Host and device, each at its own moment; torch's events and synchronisation go by them."""

    device = torch.device("cuda", 0)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        """Of the host, in seconds."""
        self.done_at = 0.0
        """When the device will have done all it was given."""
        self.waits = 0
        """How often the host has waited for the device, or asked to."""
        monkeypatch.setattr(torch.cuda, "Event", lambda **options: _Event(self, **options))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: self.wait())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "the stream")

    def launch(self, seconds: float) -> None:
        """Give the device work; the host goes on."""
        self.done_at = max(self.done_at, self.now) + seconds

    def host_works(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, until: float | None = None) -> None:
        """Wait for the device, to the end of its work unless `until` says otherwise."""
        self.waits += 1
        self.now = max(self.now, self.done_at if until is None else until)


class _Event:
    def __init__(self, gpu: StandInGpu, *, enable_timing: bool) -> None:
        assert enable_timing
        self._gpu = gpu

    def record(self, stream: str) -> None:
        assert stream == "the stream"
        self.at = max(self._gpu.now, self._gpu.done_at)

    def query(self) -> bool:
        return self.at <= self._gpu.now

    def synchronize(self) -> None:
        self._gpu.wait(self.at)

    def elapsed_time(self, last: "_Event") -> float:
        """Milliseconds; as on CUDA, an error where one of them has not passed."""
        assert self.query()
        assert last.query()
        return 1000 * (last.at - self.at)
