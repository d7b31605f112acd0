"""Errors as people read them."""

__all__ = ["NoSuchModelError", "one_line"]


class NoSuchModelError(ValueError):
    """There is no network of this name.

    Args:
        name: what was asked for.
        problem: what is wrong and what to do.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name = name


def one_line(error: BaseException | str, limit: int | None = 300) -> str:
    """Put the message of an error on one line.

    Args:
        error: what went wrong, or its message.
        limit: characters that are kept at most, None for all.

    Returns:
        The message without line breaks and repeated spaces; the type of an error without one.
    """
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]
