"""Runs on shards: exact after a resume, over the network, with broken images, and beyond the memory
of a buffer.
"""

import io
import json
import multiprocessing
import tarfile

import datasets
import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from tests.support.paths import FASHION_MNIST
from tests.support.process_group import run_on_processes
from tests.support.range_server import serve
from torch.multiprocessing import ProcessRaisedException

from esvit_hf.data.multicrop import MultiCropDataset, make_multicrop_loader
from esvit_hf.data.sampling import StreamSampler
from esvit_hf.data.shards import write_index
from esvit_hf.data.sources import load_image_source
from esvit_hf.data.streaming import open_stream
from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining.loop import pretrain
from esvit_hf.pretraining.recipe_reading import read_recipe

VIEWS = [ViewSpec(count=2, size=8, scale=(0.5, 1.0), teacher=True)]


def run(dataset, output_dir, *overrides):
    """A run of seconds on 200 images: 12 steps of 16, so that an epoch ends after the twelfth."""
    return pretrain(
        read_recipe(
            [
                "demo",
                *(
                    "--data.dataset",
                    str(dataset),
                    "--run.output_dir",
                    str(output_dir),
                    "--data.streaming",
                    "true",
                ),
                "--model.config",
                '{"image_size": 32, "embed_dim": 8, "depths": [1, 2], '
                '"num_heads": [1, 2], "window_size": 4}',
                *(
                    "--heads.num_prototypes",
                    "32",
                    "--heads.hidden_dim",
                    "16",
                    "--heads.bottleneck_dim",
                    "8",
                ),
                *(
                    "--run.batch_size",
                    "16",
                    "--schedule.num_epochs",
                    "2",
                    "--data.num_workers",
                    "2",
                    "--data.shuffle_buffer",
                    "48",
                ),
                *(
                    "--run.logging_steps",
                    "1",
                    "--run.knn_every_epochs",
                    "0",
                    "--run.mixed_precision",
                    "no",
                    "--run.trackers",
                    "[]",
                ),
                *overrides,
            ]
        )
    )


@pytest.fixture(scope="module")
def rows():
    """Encoded images of Fashion-MNIST."""
    images = load_dataset(str(FASHION_MNIST), split="train").select(range(200)).with_format("arrow")
    return [row["bytes"] for row in images["image"].to_pylist()]


@pytest.fixture(scope="module")
def parquet(rows, tmp_path_factory):
    """Three shards of different sizes."""
    folder = tmp_path_factory.mktemp("parquet")
    for shard, (first, last) in enumerate([(0, 90), (90, 110), (110, 200)]):
        write_parquet(folder / f"train-{shard:05d}-of-00003.parquet", rows[first:last])
    return folder


@pytest.fixture(scope="module")
def tars(rows, tmp_path_factory):
    """The same as tar shards, with their index."""
    folder = tmp_path_factory.mktemp("tars")
    for shard, (first, last) in enumerate([(0, 90), (90, 110), (110, 200)]):
        write_tar(folder / f"data-{shard:03d}.tar", rows[first:last])
    write_index(str(folder / "data-{000..002}.tar"), folder / "index.json")
    return folder


def write_parquet(path, images, group=20):
    table = pyarrow.table({"image": [{"bytes": image, "path": None} for image in images]})
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def write_tar(path, images):
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images):
            for name, content in ((f"{number:04d}.cls", b"0"), (f"{number:04d}.png", image)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def state(output_dir):
    tensors = load_file(output_dir / "model.safetensors") | load_file(
        output_dir / "pretraining_heads.safetensors"
    )
    last = sorted((output_dir / "checkpoints").iterdir())[-1]
    return tensors | {
        f"student.{name}": value for name, value in load_file(last / "student.safetensors").items()
    }


def losses(output_dir):
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_equal_runs(first, second):
    assert losses(first) == losses(second)
    left, right = state(first), state(second)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_resumed_stream_equals_an_uninterrupted_one(parquet, tmp_path):
    run(parquet, tmp_path / "whole", "--schedule.max_steps", "15")
    # In mid-block of the first epoch, then in the second epoch.
    run(parquet, tmp_path / "parts", "--schedule.max_steps", "5")
    run(parquet, tmp_path / "parts", "--schedule.max_steps", "13", "--run.resume", "true")
    run(parquet, tmp_path / "parts", "--schedule.max_steps", "15", "--run.resume", "true")
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(ValueError, match="resume: processes x num_workers was 2 and is 1"):
        run(parquet, tmp_path / "parts", "--run.resume", "true", "--data.num_workers", "1")
    with pytest.raises(ValueError, match="resume: data.shuffle_buffer was 48 and is 64"):
        run(parquet, tmp_path / "parts", "--run.resume", "true", "--data.shuffle_buffer", "64")


def test_a_web_server_gives_the_same_run(parquet, tars, tmp_path):
    short = ("--schedule.max_steps", "3")
    run(parquet, tmp_path / "disk", *short)
    with serve(parquet) as served:
        run(f"{served.url}/train-{{00000..00002}}-of-00003.parquet", tmp_path / "parquet", *short)
    assert_equal_runs(tmp_path / "disk", tmp_path / "parquet")
    run(tars / "index.json", tmp_path / "tar", *short)
    with serve(tars) as served:
        run(f"{served.url}/index.json", tmp_path / "remote", *short)
    assert_equal_runs(tmp_path / "tar", tmp_path / "remote")


def test_workers_read_remote_images_once_an_epoch(tmp_path):
    noise = np.random.default_rng(0)
    images = [noise.bytes(2000) for _ in range(4000)]
    for shard in range(4):
        write_parquet(
            tmp_path / f"{shard}.parquet", images[1000 * shard : 1000 * (shard + 1)], group=50
        )
    with serve(tmp_path) as served:
        source = open_stream(f"{served.url}/{{0..3}}.parquet", shuffle_buffer=500)
        served.sent.clear()
        sampler = StreamSampler(
            source.index.sizes, 50, 0, shuffle_buffer=500, readers_per_process=2, total_steps=80
        )
        loader = torch.utils.data.DataLoader(
            Encoded(source), batch_sampler=sampler, num_workers=2, collate_fn=list
        )
        seen = [image for batch in loader for image in batch]
    assert sorted(seen) == sorted(images)
    # Beyond the images themselves: footers, what is read ahead, and the chunk that two workers
    # share.
    assert sum(served.sent.values()) < 1.3 * 4000 * 2000 + 80 * 2**16


class Encoded(torch.utils.data.Dataset):
    """The images as they are stored."""

    def __init__(self, source):
        self.source = source

    def __getitems__(self, keys):
        return self.source.read_encoded([index for _, index in keys])


def test_a_lost_connection_is_tried_again(parquet, monkeypatch):
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.01)
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_RETRY_INTERVAL", 0.01)
    with serve(parquet) as served:
        source = open_stream(f"{served.url}/train-00000-of-00003.parquet", shuffle_buffer=16)
        served.failures = 5
        with pytest.warns(UserWarning, match="cannot be reached .* trying again"):
            assert source.read_encoded([5])
        monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
        monkeypatch.setattr(datasets.config, "STREAMING_OPEN_MAX_RETRIES", 2)
        served.failures = 10**6
        with (
            pytest.warns(UserWarning, match="trying again"),
            pytest.raises(
                ValueError, match="cannot be reached after 2 attempts.: repair it"
            ) as error,
        ):
            source.read_encoded([85])
    assert "\n" not in str(error.value)
    # A file that is not there is not waited for.
    with serve(parquet) as served, pytest.raises(ValueError, match="no.parquet cannot be read"):
        open_stream(f"{served.url}/no.parquet", shuffle_buffer=16)


def test_a_shard_that_is_gone_ends_the_run_in_one_line(rows, tmp_path):
    (tmp_path / "data").mkdir()
    for shard in range(4):
        write_parquet(
            tmp_path / "data" / f"train-{shard}.parquet", rows[50 * shard : 50 * (shard + 1)]
        )
    write_index(f"{tmp_path}/data/train-*.parquet", tmp_path / "data" / "index.json")
    (tmp_path / "data" / "train-2.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"train-2\.parquet cannot be read .* repair it, or leave it out$"
    ) as error:
        run(tmp_path / "data" / "index.json", tmp_path / "out")
    assert "Traceback" not in str(error.value)
    # Whoever keeps the error, as a notebook does, keeps no workers by it.
    assert multiprocessing.active_children() == []


def test_a_run_whose_worker_fails_ends(rows, tmp_path):
    write_parquet(tmp_path / "train.parquet", rows)
    write_index(str(tmp_path / "train.parquet"), tmp_path / "index.json")
    (tmp_path / "train.parquet").unlink()
    words = (tmp_path / "index.json", tmp_path / "out", "--data.image_column", "image")
    with pytest.raises(ProcessRaisedException, match="train.parquet cannot be read"):
        run_on_processes(1, run, *words)


def test_broken_images_are_named_replaced_and_counted(rows, tmp_path, capsys):
    write_parquet(tmp_path / "train.parquet", [*rows[:63], b"no image"])
    run(
        tmp_path / "train.parquet",
        tmp_path / "out",
        "--schedule.num_epochs",
        "1",
        "--data.max_broken_fraction",
        "0.1",
    )
    assert f"image 63 of {tmp_path / 'train.parquet'} cannot be decoded" in capsys.readouterr().out
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["broken_images"] >= 1


def test_crops_are_those_of_the_indexed_path(parquet):
    streamed = MultiCropDataset(open_stream(str(parquet), shuffle_buffer=16), VIEWS, 3)
    indexed = MultiCropDataset(load_image_source(str(parquet)), VIEWS, 3)
    keys = [(2, index) for index in (150, 3, 99)]
    one, other = streamed.__getitems__(keys), indexed.__getitems__(keys)
    assert torch.equal(one.buffer, other.buffer)


def test_memory_is_bounded_by_the_buffer(tmp_path):
    # 160 MB in one shard, read twice through a buffer of 20 images of 100 kB.
    images = [np.random.default_rng(number).bytes(100_000) for number in range(40)]
    schema = pyarrow.schema(
        {"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})}
    )
    with pyarrow.parquet.ParquetWriter(tmp_path / "big.parquet", schema) as writer:
        for _ in range(40):
            columns = {"image": [{"bytes": image, "path": None} for image in images]}
            writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=20)
    source = open_stream(str(tmp_path / "big.parquet"), shuffle_buffer=20)
    sampler = StreamSampler(source.index.sizes, 10, 0, shuffle_buffer=20, total_steps=320)
    process, used = psutil.Process(), []
    for keys in sampler:
        source.read_encoded([index for _, index in keys])
        used.append(process.memory_info().rss)
    # Once the first buffers were filled, what is held stays far below the 320 MB that pass through.
    assert max(used) - used[10] < 100e6


def test_online_knn_is_refused(parquet, tmp_path):
    with pytest.raises(ValueError, match="knn_every_epochs must be 0 with data.streaming: true"):
        run(parquet, tmp_path, "--run.knn_every_epochs", "1")


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_loader_gives_an_epoch_once_whatever_the_workers(parquet):
    source = open_stream(str(parquet), shuffle_buffer=16)
    for workers in (0, 3):
        sampler = StreamSampler(
            source.index.sizes,
            10,
            0,
            shuffle_buffer=16,
            readers_per_process=max(1, workers),
            total_steps=20,
        )
        loader = make_multicrop_loader(
            MultiCropDataset(source, VIEWS, 0), sampler, num_workers=workers
        )
        assert sorted(torch.cat([batch.indices for batch in loader]).tolist()) == list(range(200))
