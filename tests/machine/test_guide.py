import pytest

from skip2bench.machine.guide import GUIDE_RAM_BYTES, default_micro_batch_size, has_size

GIB = 2**30


@pytest.mark.parametrize(
    ("memory_bytes", "size"),
    [
        (None, 1),
        (0, 1),
        (12 * GIB, 1),  # sold with 12 GB
        (15_828_320_256, 2),  # T4, 16 GB: 14.7 GiB
        (int(15.77 * GIB), 2),  # V100, 16 GB
        (20 * GIB, 2),
        (int(21.2 * GIB), 2),
        (int(21.99 * GIB), 4),  # L4, 24 GB
        (int(23.69 * GIB), 4),  # RTX 3090, 24 GB
        (32 * GIB, 4),
        (35 * GIB, 4),
        (int(39.39 * GIB), 8),  # A100, 40 GB
        (int(79.1 * GIB), 8),
    ],
)
def test_the_guides_batch_sizes_by_what_cards_report(memory_bytes, size):
    assert default_micro_batch_size(memory_bytes) == size


def test_a_machine_sold_with_64_gb_has_them():
    assert has_size(int(61.8 * GIB), GUIDE_RAM_BYTES)
    assert not has_size(int(47 * GIB), GUIDE_RAM_BYTES)
