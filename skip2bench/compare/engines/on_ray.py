"""Workers on a Ray cluster: a task each, with the cores, GPUs and memory that a cell asks for."""

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from skip2bench.compare.engines.engine import LOST, CellNeeds, Ended, Slot, launch_and_wait
from skip2bench.config.engine import EngineConfig
from skip2bench.errors import Skip2BenchError, printable
from skip2bench.io.console import note
from skip2bench.io.units import format_bytes

_CANCEL_SECONDS = 10.0
_CONNECT_SECONDS = 10.0


class RayEngine:
    """Tasks of Ray. Nodes that join later are not used; one that is lost is not used again."""

    def __init__(self, config: EngineConfig, needs: CellNeeds) -> None:
        """Connect, and look where there is room.

        Raises:
            Skip2BenchError: Ray or the cluster is not there, or no node has what a cell asks for.
        """
        self._ray = _import_ray()
        self._needs = needs
        address = config.address or "auto"
        _check_address(address)
        self._open = ExitStack()
        # Ray prints what its nodes say; stdout is for results
        self._open.enter_context(redirect_stdout(sys.stderr))
        self._open.callback(self._ray.shutdown)
        try:
            self._ray.init(
                address=address,
                logging_level="ERROR",
                log_to_driver=False,
                ignore_reinit_error=True,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            self._open.close()
            reason = printable(str(error).strip().splitlines()[0])
            raise Skip2BenchError(
                f"no Ray cluster at {address!r} ({reason}); start one with 'ray start --head', or "
                "give its --address"
            ) from error
        self._nodes: dict[str, str] = {}
        self._cores: dict[str, int] = {}
        self._refs: dict[str, Any] = {}
        self.cores: int | None = None
        try:
            self.slots: Sequence[Slot] = self._find_slots(config.parallel)
        except BaseException:
            self._open.close()
            raise

    def _find_slots(self, parallel: int | None) -> list[Slot]:
        found: list[list[Slot]] = []
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        for node in nodes:
            room, cores = _count_room(node["Resources"], self._needs)
            host = node["NodeManagerHostname"]
            own = []
            for number in range(room):
                slot = Slot(name=f"{host}-{node['NodeID'][:6]}-{number}", host=host)
                self._nodes[slot.name], self._cores[slot.name] = node["NodeID"], cores
                own.append(slot)
            found.append(own)
        # one of each node, then the second ones: what runs beside nothing measures best
        most = max(map(len, found), default=0)
        slots = [own[n] for n in range(most) for own in found if n < len(own)]
        if not slots:
            raise Skip2BenchError(_say_too_small(nodes, self._needs))
        sizes = {self._cores[slot.name] for slot in slots}
        self.cores = min(sizes)
        if len(sizes) > 1 and self._needs.cores is None:
            raise Skip2BenchError(
                f"nodes of the cluster have {', '.join(map(str, sorted(sizes)))} cores for a run; "
                "runs compare on as many cores only: give --cell-cores"
            )
        note(f"Ray: room for {len(slots)} runs at once on {len([it for it in found if it])} nodes")
        return slots[:parallel]

    def start(self, folder: Path, jobs: Sequence[tuple[Slot, str]]) -> None:
        """Start a task for each job, on the slot's node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(launch_and_wait)
        for slot, name in jobs:
            task = remote.options(
                name=f"skip2bench {name}",
                num_cpus=self.cores,
                num_gpus=self._needs.gpus,
                memory=self._needs.memory_bytes,
                resources=self._needs.resources or None,
                max_retries=0,  # a job that was lost is made anew, without what is done of it
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    self._nodes[slot.name], soft=False
                ),
            )
            self._refs[slot.name] = task.remote(str(folder), name)

    def poll(self, slot: Slot) -> Ended | None:
        """How the worker in a slot ended; None while it runs or waits for room."""
        ref = self._refs[slot.name]
        done, _ = self._ray.wait([ref], timeout=0)
        if not done:
            return None
        try:
            status, line = self._ray.get(ref)
        except Exception as error:  # noqa: BLE001 - whatever the task raised, or why it never ran
            cause = getattr(error, "cause", None) or error
            reason = printable(str(cause).strip().splitlines()[0])
            return Ended(
                exit_status=LOST, line=f"worker {slot.host}: {type(cause).__name__}: {reason}"
            )
        return Ended(exit_status=status, line=line)

    def end(self, slot: Slot) -> None:
        """End the worker in a slot: asked first, then forced."""
        ref = self._refs.pop(slot.name, None)
        if ref is None:
            return
        self._ray.cancel(ref, force=False)
        done, _ = self._ray.wait([ref], timeout=_CANCEL_SECONDS)
        if not done:
            self._ray.cancel(ref, force=True)

    def is_alive(self, slot: Slot) -> bool:
        """False once the slot's node is gone."""
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        return self._nodes[slot.name] in alive

    def close(self) -> None:
        """End all that is left, and disconnect."""
        for slot in self.slots:
            self.end(slot)
        self._open.close()


def _check_address(address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        Skip2BenchError: nobody answers there.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Skip2BenchError(
            f"no Ray cluster at {address!r} ({error}); start one with 'ray start --head', or give "
            "its --address"
        ) from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise Skip2BenchError(
            "--engine ray needs Ray: pip install 'skip2bench[ray]', here and on every node"
        ) from error
    return ray


def _count_room(resources: dict[str, float], needs: CellNeeds) -> tuple[int, int]:
    """How many cells a node has room for, and how many cores each gets."""
    cores = int(resources.get("CPU", 0))
    rooms = []
    if needs.gpus:
        rooms.append(int(resources.get("GPU", 0) // needs.gpus))
    if needs.memory_bytes:
        rooms.append(int(resources.get("memory", 0) // needs.memory_bytes))
    rooms += [int(resources.get(name, 0) // amount) for name, amount in needs.resources.items()]
    if needs.cores is not None:
        return min([*rooms, cores // needs.cores]), needs.cores
    room = min(rooms[:1] if needs.gpus else [1])
    each = cores // room if room else 0
    return (min([room, *rooms]) if each else 0), each


def _say_too_small(nodes: Sequence[dict[str, Any]], needs: CellNeeds) -> str:
    wanted = [f"{needs.cores or 1} cores"]
    if needs.gpus:
        wanted.append(f"{needs.gpus} GPU")
    if needs.memory_bytes:
        wanted.append(format_bytes(needs.memory_bytes))
    wanted += [f"{name}={amount:g}" for name, amount in needs.resources.items()]
    largest = max(nodes, key=lambda it: it["Resources"].get("CPU", 0), default=None)
    there = "there is no node"
    if largest is not None:
        found = largest["Resources"]
        memory = format_bytes(int(found.get("memory", 0)))
        there = (
            f"the largest node, {largest['NodeManagerHostname']}, has "
            f"{found.get('CPU', 0):g} cores, {found.get('GPU', 0):g} GPU and {memory}"
        )
    return (
        f"no node of the Ray cluster has what a run asks for ({', '.join(wanted)}): {there}; ask "
        "for less with --cell-cores, --max-memory or --engine-options"
    )
