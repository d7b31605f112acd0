"""Errors as people read them."""

__all__ = ["one_line"]


def one_line(error: BaseException | str, limit: int | None = 300) -> str:
    """Put the message of an error on one line.

    Args:
        error: what went wrong, or its message.
        limit: characters that are kept at most, None for all.

    Returns:
        The message without line breaks and repeated spaces.
    """
    return " ".join(str(error).split())[:limit]
