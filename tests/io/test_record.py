import json

import pytest

from skip2bench.io.whole import to_json
from skip2bench.results.comparison_records import FigureRatio
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import check_summary
from skip2bench.results.run_records import TrainStart, TrainSummary

HUGE = 1.5e14
"""A loss that grew, and stayed finite."""


def test_what_was_measured_is_written_whatever_it_is():
    summary = TrainSummary.begin(TrainStart(kind="train"))
    ended = TrainSummary.of(summary, final_val_loss=HUGE, steps=0, train_seconds=-1.0)
    written = json.loads(to_json(ended))
    assert (written["final_val_loss"], written["train_seconds"]) == (HUGE, -1.0)
    assert FigureRatio(ratio=0.0, low=None, high=None, is_difference=False).ratio == 0


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"final_val_loss": HUGE}, "final_val_loss is 150000000000000.0, where a loss was expe"),
        ({"train_seconds": -1.0}, "train_seconds is -1.0, where a number of seconds was expect"),
        ({"status": "ok", "steps": 0}, "steps is 0, yet the run says that it ended well"),
        ({"new_ms": 1}, "new_ms is in another unit than the seconds of result files"),
    ],
)
def test_who_reads_it_judges_it(values, fault):
    summary = TrainSummary.begin(TrainStart(kind="train"))
    with pytest.raises(DamagedFileError, match=f"^{fault}"):
        check_summary(json.loads(to_json(TrainSummary.of(summary, **values))))
