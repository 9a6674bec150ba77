"""Scored answers of a run: outside its clocks, the same in batches, whole when it is stopped."""

import json

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import IGNORE_INDEX, collate
from skip2bench.data.scores import measure_f1
from skip2bench.errors import Skip2BenchError
from skip2bench.models import loss as loss_module
from skip2bench.models.base import build_plain_model, load_checkpoint
from skip2bench.models.generation import Answer, Sampling, answer_together
from skip2bench.models.loss import counting_hits, head_loss, position_losses
from skip2bench.train import score as score_module
from skip2bench.train.plan import plan_training
from skip2bench.train.score import choose_option, hold_exam
from skip2bench.train.state import StateFolder

SCORED = {"score": "f1", "score_max_new_tokens": 10, "val_split_fraction": 0.2}


def read_answers(folder):
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def plan(train, **changes):
    values = {"checkpoint_dir": train.checkpoint, "data": str(train.data), "device": "cpu"}
    return plan_training(TrainConfig(**(values | SCORED | changes)))


def build_base(train):
    base = load_checkpoint(train.checkpoint, torch.device("cpu"), torch.float32)
    return build_plain_model(base.config, base.weights)


def write_data(path, records):
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("method", ["lora", "skip2"])
def test_answers_are_the_trained_models_and_in_a_clock_of_their_own(train, method):
    summary, _, _, folder = train("scored", method=method, **SCORED)
    bare = train("bare", method=method, val_split_fraction=0.2)[0]
    answers = read_answers(folder)
    exam = plan(train).exam
    assert [it["id"] for it in answers] == [it.id for it in exam.questions] == list(range(8))
    assert [it["reference"] for it in answers] == [it.record["output"] for it in exam.questions]
    for it in answers:
        assert it["score"] == measure_f1(it["answer"], it["reference"])
    assert summary["score"] == pytest.approx(sum(it["score"] for it in answers) / 8)
    assert summary["score_questions"] == 8
    assert summary["score_metric"] == "f1"
    assert summary["score_seconds"] > 0
    assert summary["final_val_loss"] == bare["final_val_loss"]
    assert summary["kept_val_loss"] == bare["kept_val_loss"]
    assert not {key for key in bare if key.startswith("score")}
    clock = ("data", "cache_build", "calibration", "forward", "backward", "optimizer")
    parts = sum(summary[f"{part}_seconds"] for part in clock)
    assert summary["train_seconds"] == pytest.approx(parts)


def test_the_saved_adapter_is_the_one_that_answers(train):
    """skip2 drops its backbone; the answers are those of a model made anew from what it saved."""
    from skip2bench.export.source import open_source

    _, _, _, folder = train("scored", method="skip2", **SCORED)
    source = open_source(folder)
    exam = plan(train).exam
    for it, one in zip(read_answers(folder), exam.questions, strict=True):
        answer = Answer(source.model.eval(), one.question, Sampling(max_new_tokens=10))
        answer.finish()
        assert it["answer"] == one.question.tokenizer.decode(torch.tensor(answer.ids))


def test_a_run_that_is_stopped_at_its_answers_goes_on_with_them(train, monkeypatch):
    whole, _, steps, folder = train("whole", **SCORED)
    answered = (folder / "answers.jsonl").read_text(encoding="utf-8")
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(score_module, "answer_together", stop)
        with pytest.raises(KeyboardInterrupt):
            train("stopped", **SCORED)
    stopped = train.folder / "stopped"
    summary = json.loads((stopped / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert StateFolder(stopped).files()[0].stem == "step-00000010"
    resumed, _, resumed_steps, _ = train("stopped", resume=True, **SCORED)
    assert resumed["resumed_at_steps"] == [10]
    assert resumed["status"] == "ok"
    assert (stopped / "answers.jsonl").read_text(encoding="utf-8") == answered
    for name in ("score", "final_val_loss", "steps", "final_next_token_accuracy"):
        assert resumed[name] == whole[name]
    assert list(resumed_steps["loss"]) == list(steps["loss"])


def test_a_batch_that_does_not_fit_is_answered_in_halves(train, monkeypatch, capsys):
    exam, model = plan(train).exam, build_base(train)
    fabric = Fabric(accelerator="cpu", devices=1)
    figures, answers = hold_exam(exam, fabric, model, lambda: None)
    sizes = []

    def answer_few(model, questions, *rest):
        sizes.append(len(questions))
        if len(questions) > most:
            raise MemoryError
        return answer_together(model, questions, *rest)

    monkeypatch.setattr(score_module, "answer_together", answer_few)
    most = 2
    halved = hold_exam(exam, fabric, model, lambda: None)
    assert halved[1] == answers
    assert halved[0].score == figures.score
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    most = 0
    assert hold_exam(exam, fabric, model, lambda: None)[1] == []
    assert "the answers are not scored: out of memory" in capsys.readouterr().err


def test_options_are_chosen_by_their_likelihood_per_token(train, tmp_path):
    records = [
        {
            "instruction": f"Which of these is {i}?",
            "output": f"number {i}",
            "choices": [f"number {i}", "a", "many words that say another thing", str(i + 1)],
        }
        for i in range(10)
    ]
    data = write_data(tmp_path / "choices.json", records)
    exam = plan(train, data=str(data), score="choice", val_split_fraction=0.5).exam
    model = build_base(train)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that likelihoods differ
    fabric = Fabric(accelerator="cpu", devices=1)
    _, answers = hold_exam(exam, fabric, model, lambda: None)
    for one, answer in zip(exam.questions, answers, strict=True):
        likelihoods = []
        for own in one.option_ids:
            ids = torch.cat((one.question.ids, own)).long()
            with torch.no_grad():
                logs = model(ids[None, :-1])[0].log_softmax(dim=-1)
            place = torch.arange(len(one.question.ids) - 1, len(ids) - 1)
            likelihoods.append(float(logs[place, ids[place + 1]].mean()))
        best = max(range(4), key=likelihoods.__getitem__)
        assert choose_option(model, one, torch.device("cpu")) == best
        assert answer.answer == one.options[best]
        assert answer.score == float(best == 0)


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_position_losses_are_those_of_all_logits(train, target):
    from skip2bench.models.skip import SkipGPT, SkipSettings

    torch.manual_seed(0)
    config = load_checkpoint(train.checkpoint, torch.device("cpu"), torch.float32).config
    model = SkipGPT(config, SkipSettings(blocks=(0, 3), r=2, alpha=4, target=target)).eval()
    nn.init.normal_(model.adapters.lora_B)
    ids = torch.randint(320, (3, 7))
    rows, targets = torch.tensor([2, 9, 19]), torch.tensor([5, 6, 7])
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(
            model(ids).flatten(0, 1)[rows], targets, reduction="none"
        )
        torch.testing.assert_close(position_losses(model, ids, rows, targets), wanted)


# next-token accuracy


@pytest.mark.parametrize("method", ["lora", "skip", "skip2", "full"])
def test_next_token_accuracy_is_the_share_of_targets_with_the_highest_logit(train, method):
    changes = {"method": method, "max_steps": 40, "learning_rate": 3e-2, "eval_interval": 40}
    summary, _, _, _ = train("run", keep="last", val_split_fraction=0.2, **changes)
    from skip2bench.export.source import open_source

    model = open_source(train.folder / "run").model.eval()
    samples = plan(train, **{"score": None}).data.val
    hits = positions = 0
    for i in range(len(samples)):
        ids, labels = collate(samples, [i])
        with torch.no_grad():
            chosen = model(ids)[0, :-1].argmax(dim=-1)
        is_supervised = labels[0, 1:] != IGNORE_INDEX
        hits += int((chosen == labels[0, 1:])[is_supervised].sum())
        positions += int(is_supervised.sum())
    assert summary["final_next_token_accuracy"] == hits / positions > 0.1
    assert summary["kept_next_token_accuracy"] == summary["final_next_token_accuracy"]
    assert summary["initial_next_token_accuracy"] < summary["final_next_token_accuracy"]


@pytest.mark.parametrize("algebra", ["head", "folded"])
def test_cached_and_uncached_runs_have_the_same_next_token_accuracy(train, algebra):
    changes = {"max_steps": 30, "learning_rate": 3e-2}
    cached = train("cached", method="skip2", algebra=algebra, **changes)[0]
    uncached = train("uncached", method="skip", **changes)[0]
    for name in ("initial", "final", "kept"):
        key = f"{name}_next_token_accuracy"
        assert cached[key] == uncached[key]
    assert cached["final_next_token_accuracy"] > 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, torch.tanh])
def test_counting_changes_no_loss_and_finds_every_hit(monkeypatch, bias, cap):
    """Slices of the vocabulary, and chunks of positions where the logits have a cap."""
    torch.manual_seed(0)
    monkeypatch.setattr(loss_module, "_SLICE_BYTES", 1)
    monkeypatch.setattr(loss_module, "_SLICE_ROWS", 100)
    head = nn.Linear(8, 1000, bias=bias)
    hidden, targets = torch.randn(300, 8), torch.randint(1000, (300,))
    with torch.no_grad():
        logits = head(hidden) if cap is None else cap(head(hidden))
        targets[:50] = logits[:50].argmax(dim=-1)
        plain = head_loss(head, cap, hidden, targets)
        with counting_hits() as hits:
            counted = head_loss(head, cap, hidden, targets)
    assert torch.equal(plain, counted)
    assert hits() == int((logits.argmax(dim=-1) == targets).sum()) >= 50


# bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "bleu"}, "score is 'bleu'; choose from exact, f1, rouge-l, choice or regex"),
        ({"score": "regex:("}, "whose pattern is no regular expression"),
        ({"score": "regex:abc"}, "whose pattern has no group to compare"),
        ({"score": "regex:####(.*)"}, "the pattern does not match its output"),
        ({"score": "choice"}, "its output has no letter from A to J by itself"),
        ({"score": "f1", "devices": 2}, "score needs the whole model on one device"),
        ({"score": "f1", "stream_blocks": True}, "leave stream_blocks out with it"),
        ({"score": "f1", "score_samples": 0}, "score_samples is 0; give 1 or more"),
        ({"score": "f1", "score_max_new_tokens": 0}, "score_max_new_tokens is 0"),
    ],
)
def test_a_score_that_cannot_be_had_is_one_line(train, changes, message):
    with pytest.raises(Skip2BenchError, match=r"^[^\n]*$") as caught:
        train("bad", **changes)
    assert message in str(caught.value)
    assert not (train.folder / "bad").exists()


def test_records_that_cannot_be_asked_are_left_out_and_counted(train, tmp_path, capsys):
    records = [
        {"instruction": f"Add {i}. " * (60 if i < 20 else 1), "output": "#### 4" if i % 2 else "no"}
        for i in range(40)
    ]
    data = write_data(tmp_path / "mixed.json", records)
    changes = {"data": str(data), "score": r"regex:####\s*(\d+)", "val_split_fraction": 0.5}
    exam = plan(train, **changes).exam
    kept = [one.record for one in exam.questions]
    assert 0 < len(kept) < 20
    assert all(it["output"] == "#### 4" and len(it["instruction"]) < 20 for it in kept)
    text = capsys.readouterr().err
    assert "the pattern does not match its output" in text
    assert "its prompt leaves no room in the model's context" in text
    few = plan(train, score_samples=3, **changes).exam
    assert [one.id for one in few.questions] == [one.id for one in exam.questions[:3]]
