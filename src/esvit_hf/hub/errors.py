"""What the Hub's refusals mean and what to do about them, in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from esvit_hf.common.errors import one_line

__all__ = ["explained", "may_pass", "seconds_to_wait"]

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a valid token"
_OF_THE_DISK = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS)
_REMEDIES = {
    400: "correct what it names",
    401: _LOG_IN,
    403: (
        "use a token with write access to this repository, choose a repository of your own, or "
        "open a pull request"
    ),
    404: "check the repository's name, its branch, and that you may see it",
    409: "another change is under way or the name is taken: wait a moment, or choose another name",
    412: "somebody else committed in the meantime: look at the change",
    413: "the files are larger than your account may store: make room or ask for more",
}


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn whatever the Hub or the way to it refuses into one line with a remedy.

    Args:
        repo_id: repository that the work in this context is about.

    Raises:
        ValueError: in place of the exceptions of huggingface_hub.
    """
    try:
        yield
    # The library wraps failures of an upload in RuntimeError; its other errors are OSErrors or
    # HTTPErrors.
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(f"{repo_id}: {_explain(_root(error))}") from error


def may_pass(error: Exception) -> bool:
    """Tell whether the same request may succeed later: no connection, too many requests, a fault of
    the Hub.
    """
    root = _root(error)
    if isinstance(root, HfHubHTTPError):
        return root.response.status_code in (408, 429) or root.response.status_code >= 500
    return isinstance(root, HTTPError)


def seconds_to_wait(error: Exception) -> int | None:
    """Return how long the Hub asks to wait, None if it does not."""
    root = _root(error)
    asked = root.response.headers.get("Retry-After", "") if isinstance(root, HfHubHTTPError) else ""
    return int(asked) if asked.isdigit() else None


def _root(error: BaseException) -> BaseException:
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _explain(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off by HF_HUB_OFFLINE: unset it and run the command again"
    if isinstance(error, LocalTokenNotFoundError):
        return f"nobody is logged in: {_LOG_IN}, and run the command again"
    if isinstance(error, OSError) and (error.filename or error.errno in _OF_THE_DISK):
        return (
            f"a file of this machine cannot be read or written ({one_line(error, 200)}): make "
            f"room, or correct its rights, and run the command again"
        )
    if not isinstance(error, HfHubHTTPError):
        return (
            f"the connection to the Hub failed ({one_line(error, 200)}): check the network and run "
            f"the command again; what has arrived is not sent twice, and files appear all together "
            f"or not at all"
        )
    status = error.response.status_code
    reason = one_line(error.server_message or error, 200)
    said = f"the Hub answers {status} ({reason}), nothing is published"
    if status == 429:
        wait = seconds_to_wait(error)
        return (
            f"{said}: too many requests, wait {f'{wait} seconds' if wait else 'some minutes'} and "
            f"run the command again"
        )
    if status >= 500:
        return f"{said}: a fault of the Hub, run the command again in some minutes"
    return f"{said}: {_REMEDIES.get(status, 'look at the message')}, and run the command again"
