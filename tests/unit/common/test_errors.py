"""Errors on one line."""

import pytest

from esvit_hf.common.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        ("a  message", "a message"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("\n"), "RuntimeError"),
    ],
)
def test_an_error_without_a_message_is_named_by_its_type(
    error: BaseException | str, line: str
) -> None:
    assert one_line(error) == line
