"""The one error type for what a user can mend."""


class Skip2BenchError(Exception):
    """What is wrong, the value that is wrong, and the remedy, in one line.

    The command line prints it as `error: …` and exits with status 1; a bug keeps its traceback
    instead.
    """
