"""Signals and deaths: all processes of a run stop at one step, or end in bounded time."""

import os
import signal
import time

import psutil
import pytest
from tests.support.chaos import command
from tests.support.process_group import start_program
from transformers import AutoModel

import esvit_hf  # noqa: F401

STEPS = 400


def wait_for_metrics(output_dir, is_alive):
    """Wait for the first line of metrics of a run, which would last minutes."""
    metrics, deadline = output_dir / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and metrics.stat().st_size):
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.05)


def start_two(output_dir, said, *overrides):
    """Start a run on two processes, and return the launcher and its workers."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = command(output_dir, STEPS, resume=False)
    process = start_program([*launcher, *program, *overrides], said)
    wait_for_metrics(output_dir, process.is_alive)
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
    run, said = tmp_path / "run", tmp_path / "output.txt"
    program = command(run, STEPS, resume=False)
    process = start_program([*program, "--run.checkpoint_steps", "0"], said)
    wait_for_metrics(run, process.is_alive)
    os.killpg(process.pid, number)
    process.join(timeout=100)
    output = said.read_text()
    assert process.exitcode == code, output
    assert "--run.resume true" in output and "Traceback" not in output
    assert len(checkpoints(run)) == 1
    assert AutoModel.from_pretrained(run) is not None


@pytest.mark.distributed
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path):
    run, said = tmp_path / "run", tmp_path / "output.txt"
    process, ranks = start_two(run, said, "--run.checkpoint_steps", "0")
    ranks[1].send_signal(signal.SIGTERM)
    process.join(timeout=100)
    output = said.read_text()
    assert process.exitcode not in (None, 0), output
    assert "exitcode  : 143" in output and "Timeout" not in output, output
    (saved,) = checkpoints(run)
    assert f"stopped at step {int(saved[5:])};" in output


@pytest.mark.distributed
def test_the_death_of_one_process_ends_the_job(tmp_path):
    process, ranks = start_two(tmp_path / "run", tmp_path / "output.txt")
    ranks[1].kill()
    process.join(timeout=100)
    assert process.exitcode not in (None, 0)
    assert "Signal 9 (SIGKILL) received" in (tmp_path / "output.txt").read_text()
    assert not ranks[0].is_running() or ranks[0].status() == psutil.STATUS_ZOMBIE
