"""Transfer on two processes gives the table of one process."""

import os
from pathlib import Path

import pytest
import torch
from tests.support.process_group import run_on_processes
from tests.support.transfer_copies import (
    save_copies,
    save_model,
    save_parquet,
    single_label,
    with_broken_image,
)

from esvit_hf.evaluation import transfer_running
from esvit_hf.evaluation.transfer import transfer


def work(folder: Path) -> None:
    """What each process runs: several metrics, a data set that is not there, and one that fails."""
    copies = {
        "CIFAR-10": str(folder / "copies" / "cifar"),
        "Hateful Memes": str(folder / "copies" / "memes"),
        "STL-10": str(folder / "broken"),
        "VOC 2007": str(folder / "copies" / "voc"),
    }
    # Fewer fits than the protocol has: what may differ between processes is the features and who
    # does what.
    transfer_running.STRENGTHS, transfer_running.HALVINGS = (0.01, 1.0, 100.0), 0
    report = folder / f"report-{os.environ.get('WORLD_SIZE', '1')}"
    result = transfer(
        [str(folder / "model")],
        report=report,
        datasets=[*copies, "UCF101 frames"],
        local_copies=copies,
        features_folder=report / "features",
        batch_size=8,
        num_workers=0,
    )
    assert (result is None) == (os.environ.get("RANK", "0") != "0")


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:the best L2 strength", "ignore:the last fit")
def test_two_processes_give_the_table_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_copies(tmp_path / "copies")
    save_parquet(
        tmp_path / "broken",
        train=with_broken_image(single_label(20, 0), 9),
        test=single_label(20, 1),
    )
    save_model(tmp_path / "model")
    run_on_processes(2, work, tmp_path)
    monkeypatch.setattr(transfer_running, "STRENGTHS", transfer_running.STRENGTHS)
    monkeypatch.setattr(transfer_running, "HALVINGS", transfer_running.HALVINGS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work(tmp_path)
    finally:
        torch.set_num_threads(threads)
    for name in ("transfer.json", "transfer.md", "measurements.json"):
        expected = (tmp_path / "report-1" / name).read_text()
        assert "VOC 2007" in expected
        assert (tmp_path / "report-2" / name).read_text() == expected
    assert "| STL-10 | accuracy | failed |" in (tmp_path / "report-2" / "transfer.md").read_text()
