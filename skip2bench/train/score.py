"""`--score`: what the trained model answers to held-out records, compared with their outputs.

It comes after everything else that a run measures, and in no clock but its own. Answers are the
most likely tokens, in batches (`generation.answer_together`); where a record brings its options,
the model answers by the one it finds most likely, per token. How answers are compared is `scores`'.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from skip2bench.cache.skip_cache import supervised_rows, token_budget
from skip2bench.config.score import ScoreName, split_score
from skip2bench.config.train import TrainConfig
from skip2bench.data.chat import ChatError, ChatRenderer
from skip2bench.data.records import Record
from skip2bench.data.samples import IGNORE_INDEX, Samples, collate, length_buckets
from skip2bench.data.scores import find_fault, find_option, score_answer
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Bar, warn
from skip2bench.io.units import format_amount
from skip2bench.machine.clock import Clock
from skip2bench.machine.out_of_memory import DoesNotFitError, fitting
from skip2bench.models.generation import Question, answer_together, encode_question, make_question
from skip2bench.models.loss import position_losses
from skip2bench.models.precise import in_float64
from skip2bench.results.answers import AnswerRecord, standard_error
from skip2bench.results.run_records import ScoreFigures

_MOST_TOGETHER = 32
"""Questions in a batch; beyond it a step of a small model on a CPU gains little."""
_KEYS_AND_VALUES_BYTES = {"cpu": 2**28}
"""Most that a batch's key-value cache takes."""
_GPU_KEYS_AND_VALUES_BYTES = 2**32


@dataclass(frozen=True, kw_only=True)
class ExamQuestion:
    """A record that is asked."""

    id: int
    """Its place among those that validate."""
    record: Record
    question: Question
    options: tuple[str, ...] = ()
    """What the model chooses from; where there are none, it writes."""
    option_ids: tuple[Tensor, ...] = ()
    """Tokens of each option."""
    right: int = 0
    """Place of the right option."""

    @property
    def prompt(self) -> str:
        """Instruction and input, as the record has them."""
        parts = (self.record["instruction"], self.record["input"])
        return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Exam:
    """All that a trained model is asked, and how its answers count."""

    metric: str
    """As `--score` has it."""
    name: ScoreName
    pattern: re.Pattern[str] | None
    questions: tuple[ExamQuestion, ...]
    max_new_tokens: int


def plan_exam(
    config: TrainConfig,
    held_out: Sequence[Record],
    tokenizer: Tokenizer,
    model_config: Config,
    style: str,
    renderer: ChatRenderer | None = None,
) -> Exam | None:
    """What a run's model will be asked; None where nobody wants to know.

    Args:
        config: Of the run.
        held_out: Records of the validation side.
        tokenizer: Of the base model.
        model_config: LitGPT's.
        style: LitGPT's name of the prompt style.
        renderer: Of conversations, where there are some.

    Raises:
        Skip2BenchError: there is no record that could be asked.
    """
    if config.score is None:
        return None
    if not held_out:
        raise Skip2BenchError(
            f"score asks held-out records, and data {config.data!r} has none that are known as "
            "text; give pydoc or an Alpaca JSON or JSONL file"
        )
    name, pattern = split_score(config.score)
    questions: list[ExamQuestion] = []
    faults: Counter[str] = Counter()
    for id_, record in enumerate(held_out):
        if len(questions) == config.score_samples:
            break
        made = _ask(id_, record, name, pattern, _Asker(tokenizer, model_config, style, renderer))
        if isinstance(made, str):
            faults[made] += 1
        else:
            questions.append(made)
    for fault, count in faults.items() if questions else ():
        warn(f"score leaves out {format_amount(count, 'held-out record')}: {fault}")
    if not questions:
        (fault, _), *_ = faults.most_common()
        raise Skip2BenchError(
            f"score {config.score!r} can ask none of {len(held_out)} held-out records: {fault}; "
            "choose another --score"
        )
    return Exam(
        metric=config.score,
        name=name,
        pattern=pattern,
        questions=tuple(questions),
        max_new_tokens=config.score_max_new_tokens,
    )


@dataclass(frozen=True)
class _Asker:
    """What brings a record to tokens."""

    tokenizer: Tokenizer
    config: Config
    style: str
    renderer: ChatRenderer | None

    def encode(self, record: Record) -> Question | None:
        """The record's prompt; None where it leaves no room for an answer."""
        try:
            question = self._encode(record)
        except Skip2BenchError:  # longer than the context
            return None
        return question if len(question.ids) else None

    def _encode(self, record: Record) -> Question:
        own = (self.tokenizer, self.config, self.style)
        if "messages" not in record or self.renderer is None:
            system = record.get("sys_prompt", "")
            return encode_question(*own, record["instruction"], record["input"], system)
        try:
            ids, _, last = self.renderer.encode(record["messages"])
        except ChatError as error:
            raise Skip2BenchError(f"a conversation {error}") from error
        return make_question(*own, ids[:last])


def _ask(
    id_: int, record: Record, name: ScoreName, pattern: re.Pattern[str] | None, asker: _Asker
) -> ExamQuestion | str:
    """The question that a record is, or why it is none."""
    found = None
    if name == "choice" and "choices" in record:
        found = find_option(record["output"], record["choices"])
        if found is None:
            return "its output is none of its choices, nor the letter of one"
    elif (fault := find_fault(name, record["output"], pattern)) is not None:
        return fault
    question = asker.encode(record)
    if question is None:
        return "its prompt leaves no room in the model's context"
    if found is None:
        return ExamQuestion(id=id_, record=record, question=question)
    options, right = found
    ids = tuple(asker.tokenizer.encode(text, bos=False, eos=False) for text in options)
    if max(map(len, ids)) + len(question.ids) > asker.config.block_size:
        return "its choices leave the model's context"
    return ExamQuestion(
        id=id_,
        record=record,
        question=question,
        options=tuple(options),
        option_ids=ids,
        right=right,
    )


def hold_exam(
    exam: Exam, fabric: Fabric, model: GPT, check_stop: Callable[[], None]
) -> tuple[ScoreFigures, list[AnswerRecord]]:
    """Ask the model everything.

    Args:
        exam: What it is asked.
        fabric: Of the run.
        model: The whole one, in evaluation mode.
        check_stop: Raises where somebody has asked to stop.

    Returns:
        The figures, and the answers in the order of the records; nothing but the figures' clock
        where memory did not suffice for one answer, which is said.
    """
    clock = Clock(fabric.device)
    written = [it for it in exam.questions if not it.options]
    chosen = [it for it in exam.questions if it.options]
    answers: list[AnswerRecord] = []
    cut = 0
    try:
        with Bar("answers", len(exam.questions), "questions") as bar:
            for batch in _list_batches(written, model, exam.max_new_tokens):
                with clock.part("score"), fabric.autocast():
                    texts, n_cut = _write_answers(model, batch, exam, check_stop)
                answers += [_mark_text(exam, *pair) for pair in zip(batch, texts, strict=True)]
                cut += n_cut
                bar.advance(len(batch), _describe_mean(answers))
            for one in chosen:
                check_stop()
                with clock.part("score"), fabric.autocast(), fitting("score"):
                    answers.append(_mark_option(one, choose_option(model, one, fabric.device)))
                bar.advance(1, _describe_mean(answers))
    except DoesNotFitError as error:
        warn(f"the answers are not scored: {error}; lower --score-max-new-tokens")
        return ScoreFigures(score_seconds=clock.seconds.get("score", 0.0)), []
    answers.sort(key=lambda answer: answer.id)
    scores = [answer.score for answer in answers]
    figures = ScoreFigures(
        score_metric=exam.metric,
        score=sum(scores) / len(scores),
        score_standard_error=standard_error(scores),
        score_questions=len(scores),
        score_cut_answers=cut,
        score_max_new_tokens=exam.max_new_tokens,
        score_seconds=clock.seconds["score"],
    )
    return figures, answers


def _list_batches(
    questions: Sequence[ExamQuestion], model: GPT, max_new_tokens: int
) -> Iterator[list[ExamQuestion]]:
    """Questions of similar length, as many as their key-value cache has room for."""
    config, weight = model.config, model.transformer.wte.weight
    groups = config.n_query_groups or config.n_head
    position_bytes = 2 * config.n_layer * groups * (config.head_size or 0) * weight.element_size()
    most = _KEYS_AND_VALUES_BYTES.get(weight.device.type, _GPU_KEYS_AND_VALUES_BYTES)
    batch: list[ExamQuestion] = []
    for one in sorted(questions, key=lambda it: len(it.question.ids)):
        positions = (len(batch) + 1) * (len(one.question.ids) + max_new_tokens)
        is_full = len(batch) == _MOST_TOGETHER or positions * position_bytes > most
        if batch and is_full:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _write_answers(
    model: GPT, batch: Sequence[ExamQuestion], exam: Exam, check_stop: Callable[[], None]
) -> tuple[list[str], int]:
    """Answers to a batch, in halves where it does not fit; and how many were cut off.

    Raises:
        DoesNotFitError: not even one question does.
    """
    questions = [one.question for one in batch]
    try:
        with fitting("score"):
            ids = answer_together(model, questions, exam.max_new_tokens, check_stop)
    except DoesNotFitError:
        if len(batch) == 1:
            raise
    else:
        texts = [
            it.tokenizer.decode(torch.tensor(own, dtype=torch.long)) if own else ""
            for it, own in zip(questions, ids, strict=True)
        ]
        return texts, sum(len(own) >= exam.max_new_tokens for own in ids)
    middle = len(batch) // 2
    halves = [
        _write_answers(model, half, exam, check_stop) for half in (batch[:middle], batch[middle:])
    ]
    return [text for texts, _ in halves for text in texts], sum(cut for _, cut in halves)


@torch.inference_mode()
def choose_option(model: GPT, one: ExamQuestion, device: torch.device) -> int:
    """Place of the option with the highest log-likelihood per token after the prompt.

    Of equally likely ones it is the first.
    """
    prompt = one.question.ids
    ids = [torch.cat((prompt, own)).long() for own in one.option_ids]
    labels = [it.clone() for it in ids]
    for label in labels:
        label[: len(prompt)] = IGNORE_INDEX
    samples = Samples(input_ids=ids, labels=labels)
    losses = torch.empty(len(ids), dtype=torch.float64)
    for bucket in length_buckets(range(len(ids)), samples.lengths, token_budget(device)):
        input_ids, own = collate(samples, bucket)
        rows, targets = supervised_rows(own)
        each = position_losses(model, *(it.to(device) for it in (input_ids, rows, targets)))
        counts = [samples.supervised_counts[i] for i in bucket]
        parts = torch.split(in_float64(each).cpu(), counts)
        for i, part in zip(bucket, parts, strict=True):
            losses[i] = part.mean()
    return int(losses.argmin())


def _mark_text(exam: Exam, one: ExamQuestion, answer: str) -> AnswerRecord:
    reference = one.record["output"]
    score = score_answer(exam.name, answer, reference, exam.pattern)
    return _mark(one, answer, score)


def _mark_option(one: ExamQuestion, place: int) -> AnswerRecord:
    return _mark(one, one.options[place], float(place == one.right))


def _mark(one: ExamQuestion, answer: str, score: float) -> AnswerRecord:
    return AnswerRecord(
        id=one.id,
        prompt=one.prompt,
        reference=one.record["output"],
        answer=answer,
        score=score,
    )


def _describe_mean(answers: Sequence[AnswerRecord]) -> str:
    return f"score {sum(answer.score for answer in answers) / len(answers):.3f}"
