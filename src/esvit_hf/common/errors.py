"""Errors as people read them."""

__all__ = ["one_line"]


def one_line(error: BaseException, limit: int = 300) -> str:
    """Put the message of an error on one line.

    Args:
        error: what went wrong.
        limit: characters that are kept at most.

    Returns:
        The message without line breaks and repeated spaces.
    """
    return " ".join(str(error).split())[:limit]
