"""Who used the processor: a fake clock and fake counters, so that every share is exact."""

import pytest

from skip2bench.machine.hardware import has_quota
from skip2bench.machine.processor_use import Look, ProcessorMeter


class Machine:
    """Two cores: counters as functions of the time that a test lets pass."""

    def __init__(self) -> None:
        self.time, self.busy, self.own, self.looks = 100.0, 50.0, 7.0, 0

    def pass_time(self, seconds, own, others):
        self.time += seconds
        self.own += seconds * own
        self.busy += seconds * (own + others)

    def look(self):
        self.looks += 1
        return Look(self.busy, self.own)

    def meter(self):
        return ProcessorMeter(self.look, lambda: self.time)


@pytest.fixture
def machine():
    return Machine()


def test_each_part_has_its_own_use(machine):
    meter = machine.meter()
    machine.pass_time(5, 1.0, 0.0)  # in no part
    meter.enter("build")
    machine.pass_time(40, 0.5, 1.5)
    meter.enter("steps")
    machine.pass_time(10, 2.0, 0.0)
    meter.enter("")
    machine.pass_time(60, 0.0, 2.0)
    build, steps = meter.total(["build"]), meter.total(["steps"])
    assert (build.wall_seconds, build.cpu_seconds, build.others_cores) == (40, 20, 1.5)
    assert (steps.wall_seconds, steps.cpu_seconds, steps.others_cores) == (10, 20, 0)
    both = meter.total(["build", "steps", "no such part"])
    assert (both.wall_seconds, both.cpu_seconds, both.others_cores) == (50, 40, 1.2)
    assert meter.total(["no such part"]) is None


def test_parts_of_milliseconds_share_one_look_a_second(machine):
    meter = machine.meter()
    for _ in range(1000):
        for name in ("forward", "backward"):
            before = meter.enter(name)
            machine.pass_time(0.003 if name == "forward" else 0.001, 1.0, 0.5)
            meter.enter(before)
    assert machine.looks <= 1 + 2 + 4 + 1  # two more at the beginning
    forward, backward = meter.total(["forward"]), meter.total(["backward"])
    assert (forward.wall_seconds, forward.cpu_seconds) == pytest.approx((3, 3))
    assert (backward.wall_seconds, backward.cpu_seconds) == pytest.approx((1, 1))
    assert forward.others_cores == pytest.approx(backward.others_cores) == pytest.approx(0.5)


def test_slow_looks_are_rarer(machine):
    def look():
        machine.pass_time(0.05, 1.0, 0.0)
        return machine.look()

    meter = ProcessorMeter(look, lambda: machine.time)
    started = machine.time
    for _ in range(20_000):
        meter.enter("step")
        machine.pass_time(0.01, 1.0, 0.0)
    assert machine.looks * 0.05 < 0.002 * (machine.time - started) + 0.1


def test_what_the_system_does_not_say_is_not_known(machine):
    unknown = ProcessorMeter(lambda: Look(None, machine.own), lambda: machine.time)
    # another machine's counters, or none: not even this process is in them
    foreign = ProcessorMeter(lambda: Look(0.0, machine.own), lambda: machine.time)
    dumb = ProcessorMeter(lambda: Look(None, None), lambda: machine.time)
    for meter in (unknown, foreign, dumb):
        meter.enter("build")
    machine.pass_time(10, 1.0, 1.0)
    assert [it.total(["build"]).others_cores for it in (unknown, foreign, dumb)] == [None] * 3
    assert [it.total(["build"]).cpu_seconds for it in (unknown, foreign, dumb)] == [10, 10, None]


def test_an_instant_says_nothing_and_rounding_is_not_negative(machine):
    short, alone = machine.meter(), machine.meter()
    short.enter("instant")
    machine.pass_time(0.4, 0.5, 1.5)
    assert short.total(["instant"]).others_cores is None
    alone.to_plain()
    alone.enter("steps")
    machine.pass_time(10, 1.0, -0.005)  # ticks that the system has not counted yet
    assert alone.total(["steps"]).others_cores == 0


def test_a_resumed_run_goes_on_counting(machine):
    meter = machine.meter()
    meter.enter("steps")
    machine.pass_time(10, 1.0, 1.0)
    plain = meter.to_plain()
    later = machine.meter()
    later.enter("steps")
    machine.pass_time(3, 1.0, 0.0)  # steps that are made again
    later.restore(plain)
    machine.pass_time(10, 1.0, 0.0)
    use = later.total(["steps"])
    assert (use.wall_seconds, use.cpu_seconds, use.others_cores) == (20, 20, 0.5)


def test_a_quota_makes_the_cores_somebody_elses(tmp_path):
    lines, groups = tmp_path / "cgroup", tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    lines.write_text("0::/a/b\n")
    assert not has_quota(lines, groups)
    (groups / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert not has_quota(lines, groups)
    (groups / "a" / "cpu.max").write_text("150000 100000\n")
    assert has_quota(lines, groups)
    first = groups / "cpu" / "x"
    first.mkdir(parents=True)
    lines.write_text("4:cpu,cpuacct:/x\n3:memory:/x\n")
    (first / "cpu.cfs_quota_us").write_text("-1\n")
    assert not has_quota(lines, groups)
    (first / "cpu.cfs_quota_us").write_text("150000\n")
    assert has_quota(lines, groups)
    assert not has_quota(tmp_path / "missing", groups)
