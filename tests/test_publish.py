"""A comparison that is given away: its figures stay, texts of the data do not."""

import json

import pytest

from publish_comparison import publish
from skip2bench.results.answers import AnswerRecord, ScoredRun
from skip2bench.results.run_records import TrainSummary


def test_texts_and_weights_stay_at_home(tmp_path):
    source, target = tmp_path / "own", tmp_path / "published"
    run = source / "cells" / "lora-seed1"
    (run / "final").mkdir(parents=True)
    (run / "final" / "adapter.safetensors").write_bytes(b"weights")
    (run / "peft" / "out").mkdir(parents=True)
    (run / "peft" / "out" / "adapter_model.safetensors").write_bytes(b"weights")
    (run / "summary.json").write_text("{}\n")
    (source / "cells" / "lora-seed1.log").write_text("secret\n")
    (source / "cells" / "lora-seed1.json").write_text("{}\n")
    asked = {"id": 3, "prompt": "secret?", "reference": "secret", "answer": "secret!", "score": 0.5}
    (run / "answers.jsonl").write_text(json.dumps(asked) + "\n")

    assert publish(source, target) == 1
    left = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert left == {
        "cells/lora-seed1.json",
        "cells/lora-seed1/answers.jsonl",
        "cells/lora-seed1/summary.json",
    }
    text = (target / "cells/lora-seed1/answers.jsonl").read_text()
    assert "secret" not in text
    answer = AnswerRecord.read(json.loads(text))
    assert (answer.prompt, answer.answer) == (None, None)
    scored = ScoredRun.of(TrainSummary.model_construct(score_metric="f1"), [answer])
    assert scored is not None
    assert scored.scores == {3: 0.5}
    with pytest.raises(FileExistsError):
        publish(source, target)
