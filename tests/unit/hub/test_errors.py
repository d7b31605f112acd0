"""What went wrong on the way to the Hub, told apart from what went wrong on this machine."""

import errno
import os
import socket
from pathlib import Path

import pytest

from esvit_hf.hub.errors import explained


def explain(error: Exception) -> str:
    with pytest.raises(ValueError) as told, explained("owner/model"):
        raise error
    return str(told.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_failing_disk_is_not_the_connection(number: int) -> None:
    said = explain(OSError(number, os.strerror(number)))
    assert os.strerror(number) in said and "this machine" in said and "connection" not in said


def test_a_file_that_is_missing_is_not_the_connection(tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "file").read_text()
    assert str(tmp_path / "file") in (said := explain(missing.value)) and "connection" not in said


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        socket.gaierror(socket.EAI_NONAME, "no such host"),
        OSError(errno.ENETUNREACH, "unreachable"),
        TimeoutError("too late"),
    ],
)
def test_the_connection_is_named(error: Exception) -> None:
    assert "the connection to the Hub failed" in explain(error)
