"""Figures as people read them."""

import pytest

from skip2bench.io import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (0.0123, "0.0123"), (-0.00123, "-0.00123"), (1.0, "1.00"), (9.996, "10.0")],
        *[
            (12.34, "12.3"),
            (99.96, "100"),
            (999.6, "1,000"),
            (1234.5, "1,234"),
            (1e-6, "0.00000100"),
        ],
    ],
)
def test_format_significant(value: float, text: str) -> None:
    assert units.format_significant(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0, "0 ms"), (0.000456, "0.456 ms"), (0.0123, "12.3 ms"), (0.9994, "999 ms")],
        *[(0.9996, "1.00 s"), (4.56, "4.56 s"), (92.4, "92.4 s"), (4321.0, "4,321 s")],
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "ja", "en"),
    [
        (3.21, "3.21 秒", "3.21 s"),
        (59.94, "59.9 秒", "59.9 s"),
        (59.97, "1 分 0 秒", "1 min 0 s"),
        (92.4, "1 分 32 秒", "1 min 32 s"),
        (3599.6, "1 時間 0 分 0 秒", "1 h 0 min 0 s"),
        (3723, "1 時間 2 分 3 秒", "1 h 2 min 3 s"),
    ],
)
def test_format_duration(seconds: float, ja: str, en: str) -> None:
    assert units.format_duration(seconds, "ja") == ja
    assert units.format_duration(seconds, "en") == en


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *[(0, "0 B"), (512, "512 B"), (1024, "1.0 KiB"), (12.3 * 2**20, "12.3 MiB")],
        *[(2**30 - 1, "1.00 GiB"), (1.25 * 2**30, "1.25 GiB"), (-(2**20), "-1.0 MiB")],
        *[(5000 * 2**40, "5,000.00 TiB")],
    ],
)
def test_format_bytes(size: float, text: str) -> None:
    assert units.format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *[(0, "0"), (49_152, "49,152"), (999_999, "999,999"), (2_097_152, "2.10M")],
        *[(6_738_415_616, "6.74B")],
    ],
)
def test_format_count(count: int, text: str) -> None:
    assert units.format_count(count) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        *[(0.253, "25.3 %"), (1.0, "100.0 %"), (-0.5, "-50.0 %"), (0.0, "0.0 %"), (-1e-9, "0.0 %")],
        *[(0.00031, "0.031 %"), (0.0056, "0.56 %"), (0.00999, "1.0 %"), (12.5, "1,250.0 %")],
    ],
)
def test_format_percent(ratio: float, text: str) -> None:
    assert units.format_percent(ratio) == text


@pytest.mark.parametrize(("ratio", "text"), [(0.01, "+1.0 %"), (-0.01, "-1.0 %"), (0, "0.0 %")])
def test_format_percent_signed(ratio: float, text: str) -> None:
    assert units.format_percent(ratio, signed=True) == text


def test_format_milliseconds_loss_and_time() -> None:
    assert units.format_milliseconds(0.1214) == "121"
    assert units.format_loss(2.34567) == "2.3457"
    assert units.format_time("2026-11-23T19:05:59+09:00") == "2026-11-23 10:05 UTC"


def test_sizes_of_a_table_can_be_kept_in_one_unit():
    with units.sizes_from("GiB"):
        assert units.format_bytes(512 * 2**20) == "0.50 GiB"
        assert units.format_bytes(3 * 2**40) == "3.00 TiB"
    assert units.format_bytes(512 * 2**20) == "512.0 MiB"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(6144.0, "6,144"), (0.0, "0"), (200_000.0, "200,000"), (2e6, "2M")],
        *[(1_604_000.0, "1.604M"), (2.5e9, "2.5B"), (3e12, "3T")],
        *[(0.05, "0.05"), (12.5, "12.5"), (150.0, "150")],
    ],
)
def test_format_tick(value: float, text: str) -> None:
    assert units.format_tick(value) == text
