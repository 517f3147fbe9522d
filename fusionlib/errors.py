"""The one error type that this library raises for what a user can put right."""


class FusionError(ValueError):
    """What was wrong, which file or argument, and what to do, in one sentence.

    A ``ValueError``, so that callers who know nothing of this library still catch it; the command
    line prints it without a traceback.
    """
