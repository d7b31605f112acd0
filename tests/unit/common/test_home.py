"""Paths as users write them."""

from pathlib import Path

import pytest

from esvit_hf.common.files import expand_home


def test_the_home_folder_is_put_in_for_the_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expand_home("~/run") == "/home/ada/run"
    assert expand_home("~/shards/*.tar") == "/home/ada/shards/*.tar"
    assert expand_home(Path("~/run")) == Path("/home/ada/run")
    assert expand_home("~") == "/home/ada"


@pytest.mark.parametrize("place", ["user/model", "./run", "a~b", "https://host/~ada/x.tar", "/~"])
def test_everything_else_stays_as_it_is(place: str) -> None:
    assert expand_home(place) == place


def test_an_unknown_user_is_one_line() -> None:
    with pytest.raises(ValueError, match="~nobody-here/run names no home folder: give the path"):
        expand_home("~nobody-here/run")
