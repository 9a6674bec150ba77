"""The one error type for what a user can mend."""


class Skip2BenchError(Exception):
    """What is wrong, the value that is wrong, and the remedy, in one line.

    The command line prints it as `error: …` and exits with status 1; a bug keeps its traceback
    instead.
    """


class DivergedError(Skip2BenchError):
    """A loss that is not finite ended a run; it would do so again."""

    def __init__(self, text: str, step: int) -> None:
        """Keep the step after which it was found."""
        super().__init__(text)
        self.step = step
