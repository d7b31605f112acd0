"""Signals and deaths: all processes of a run stop at one step, or end in bounded time."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.support.chaos import command
from transformers import AutoModel

import esvit_hf  # noqa: F401

STEPS = 400


def start(output_dir, *overrides, processes=1):
    """Start a run that would last minutes, wait for its first line of metrics, and return it with
    its workers.
    """
    program = command(output_dir, STEPS, resume=False)[1:]
    launcher = [sys.executable]
    if processes > 1:
        launcher += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
    process = subprocess.Popen(
        [*launcher, *program, *overrides],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    metrics, deadline = output_dir / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("RANK") if child.ppid() == process.pid else None
        if rank is not None:
            ranks[int(rank)] = child
    return process, ranks


def checkpoints(output_dir):
    return sorted(path.name for path in (output_dir / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_saves_first(tmp_path, number, code):
    process, _ = start(tmp_path, "--run.checkpoint_steps", "0")
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    assert "--run.resume true" in output and "Traceback" not in output
    assert len(checkpoints(tmp_path)) == 1
    assert AutoModel.from_pretrained(tmp_path) is not None


@pytest.mark.distributed
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path):
    process, ranks = start(tmp_path / "run", "--run.checkpoint_steps", "0", processes=2)
    ranks[1].send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "exitcode  : 143" in output and "Timeout" not in output, output
    (saved,) = checkpoints(tmp_path / "run")
    assert f"stopped at step {int(saved[5:])};" in output


@pytest.mark.distributed
def test_the_death_of_one_process_ends_the_job(tmp_path):
    process, ranks = start(tmp_path / "run", processes=2)
    ranks[1].kill()
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in output
    assert not ranks[0].is_running() or ranks[0].status() == psutil.STATUS_ZOMBIE
