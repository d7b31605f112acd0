"""Files and folders that are whole or not there."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esvit_hf.common.files import (
    check_writable,
    digest_file,
    give_usual_modes,
    public_name,
    write_aside,
)


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with write_aside(path) as aside:
        assert aside.name == "file.txt"
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert contents(tmp_path) == ["file.txt"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for existing in (False, True):
        if existing:
            (folder / "a.txt").unlink()
        with write_aside(folder) as aside:
            aside.mkdir()
            (aside / "a.txt").write_text("a")
            assert folder.is_dir() == existing and not (folder / "a.txt").exists()
        assert contents(tmp_path) == ["model", "model/a.txt"]
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), write_aside(path) as aside:
        aside.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with pytest.raises(FileNotFoundError), write_aside(path):
        pass
    assert contents(tmp_path) == ["file.txt"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for last in (False, True):
        if os.fork() == 0:
            with write_aside(path) as aside:
                aside.mkdir()
                (aside / ("a" if last else "half")).touch()
                if not last:
                    os._exit(1)
            os._exit(0)
        os.wait()
    assert contents(tmp_path) == ["model", "model/a"]


def test_a_checkpoint_has_the_same_bytes_as_one_that_is_saved_in_place(tmp_path: Path) -> None:
    # PyTorch writes the name of the file into it.
    with write_aside(tmp_path / "checkpoint.pth") as aside:
        torch.save({"weight": torch.ones(2)}, aside)
    (tmp_path / "place").mkdir()
    torch.save({"weight": torch.ones(2)}, tmp_path / "place" / "checkpoint.pth")
    digests = [digest_file(tmp_path / name) for name in ("checkpoint.pth", "place/checkpoint.pth")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("facebook/dinov2-small", "facebook/dinov2-small"),
        ("outputs/demo", "outputs/demo"),
        ("/scratch/me/demo", "demo"),
        ("../me/demo", "demo"),
        ("~/demo", "demo"),
        ("~nobody-here/photos", "photos"),
        ("~", "data"),
        ("/scratch/me/shards/*.tar", "shards/*.tar"),
        ("/scratch/me/shards/{0..9}/x?.tar", "shards/{0..9}/x?.tar"),
        ("~/shards/train-*.parquet", "shards/train-*.parquet"),
        ("../shards/*.tar", "shards/*.tar"),
        ("~/*.tar", "*.tar"),
        ("shards/*.tar", "shards/*.tar"),
        ("https://me:secret@host/shards/*.tar?signature=abc", "https://host/shards/*.tar"),
        ("https://host/file.tar#part", "https://host/file.tar"),
        ("s3://bucket/shards/*.tar", "s3://bucket/shards/*.tar"),
        ("hf://datasets/me/photos/*.tar", "hf://datasets/me/photos/*.tar"),
        ("file:///scratch/me/photos", "photos"),
        ("zip://*.jpg::/scratch/me/photos.zip", "zip://*.jpg::photos.zip"),
    ],
)
def test_public_names(name: str, public: str) -> None:
    assert public_name(name) == public
    if "//" not in name:
        assert public_name(Path(name)) == public


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_tensors_are_as_readable_as_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        give_usual_modes(tmp_path)
        with write_aside(tmp_path / "b.safetensors") as aside:
            save_file({"b": torch.zeros(1)}, aside)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "a.safetensors": mode,
        "b.safetensors": mode,
    }


def test_a_place_that_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "new", Path("/proc/new")):
        with pytest.raises(OSError):  # noqa: PT011 - whichever the system gives
            check_writable(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
