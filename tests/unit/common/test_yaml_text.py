"""YAML as people write it, and what is no YAML."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esvit_hf.common.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5", 5),
        ("-5.", -5.0),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("2012-01-01", "2012-01-01"),
        ("null", None),
        ("", None),
        ("[1, a, {b: .5}]", [1, "a", {"b": 0.5}]),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    read = read_yaml(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1"),
        ("a: 1\nb: 2\na: 3", "a is given twice.*line 3"),
        ("a: !!python/object/apply:os.system ['exit 3']", "could not determine a constructor"),
        ("{[1]: 2}", "unhashable key"),
        ("[" * 3000, "recursion"),
        ("\0", "special characters"),
    ],
)
def test_what_is_no_yaml_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["no", "1e-3", "1e3", "null", "~", "true", ".inf", "2012-01-01", "0x1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@example({"\x85": "a\u2028b"})
@given(VALUES)
def test_what_is_written_reads_back_equal(value: Any) -> None:
    assert read_yaml(write_yaml(value)) == value
