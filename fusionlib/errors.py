"""The error type that this library raises for what a user can put right."""


class FusionError(ValueError):
    """What was wrong, which file or argument, and what to do, in one sentence.

    A ``ValueError``, so that callers who know nothing of this library still catch it; the command
    line prints it without a traceback.

    Example:
        >>> from fusionlib import FusionError, masks_from_boxes
        >>> try:
        ...     masks_from_boxes([(100, 0, 150, 64)], size=(128, 128))
        ... except FusionError as error:
        ...     print(error)  # doctest: +NORMALIZE_WHITESPACE
        boxes[0] (100, 0, 150, 64) must have its left before its right, its top above its bottom,
        and lie in the picture of 128 x 128 pixels.
    """


class NoFaceError(FusionError):
    """A picture shows no face that a method can find, though it needs one.

    Where the picture is one of many, as in a study, it is left out and counted.
    """
