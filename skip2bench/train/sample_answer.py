"""`--sample-prompt`: one answer of the model as it stands, at every evaluation."""

from skip2bench.io.console import note
from skip2bench.models.generation import Answer, Sampling
from skip2bench.train.training import TrainingRun

_SAMPLING = Sampling(max_new_tokens=100)
"""The most likely tokens, so that nothing is drawn which the run would have drawn."""


def show_answer(run: TrainingRun, step: int) -> None:
    """Show what the model, in evaluation mode, answers after so many steps; in no clock."""
    question = run.attempt.plan.sample_question
    if question is None:
        return
    with run.fabric.autocast():
        answer = Answer(run.model, question, _SAMPLING).finish()
    note(f"answer after step {step:,}: {' '.join(answer.split())}")
