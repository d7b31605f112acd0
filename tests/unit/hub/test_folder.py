"""Names of data pass the check of what is published, folders of a machine do not."""

from pathlib import Path

import pytest

from esvit_hf.common.files import public_name
from esvit_hf.hub.folder import check_files


@pytest.mark.parametrize(
    "dataset",
    [
        "~/photos",
        "~/shards/*/day/0.tar",
        "/scratch/me/shards/{a,b}/day/0.tar",
        "/scratch/me/shards/part-?/day/0.tar",
        "/scratch/me/shards/[ab]/day/0.tar",
        "/scratch/me/a+b/*.tar",
        "../../me/photos/**/*.jpg",
        "file:///scratch/me/photos/*.jpg",
        "zip://*.jpg::/scratch/me/photos/first.zip",
        "https://me:secret@host:8080/a/b/*.tar?signature=abc#x",
        "s3://bucket/a/b/*.parquet",
        "hf://datasets/me/photos/data/*.parquet",
    ],
)
def test_the_public_name_of_data_can_be_published(dataset: str, tmp_path: Path) -> None:
    public = public_name(dataset)
    assert "me" not in public.replace("datasets/me/", "").split("/") and "secret" not in public
    (tmp_path / "README.md").write_text(f"pretrained on `{public}`\n\n    --dataset {public}\n")
    check_files(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["/home/me/photos", "x=/home/me", "a, /home/me", "'/home/me'", "`/home/me/x`", "C:\\Users\\me"],
)
def test_a_folder_of_this_machine_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"pretrained on {text} first\n")
    with pytest.raises(ValueError, match="of this machine"):
        check_files(tmp_path)
