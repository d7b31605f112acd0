"""One run at a time in an output folder, whatever became of the ones before."""

import os
import signal
import subprocess
import sys

import pytest
from accelerate import Accelerator

from esvit_hf.pretraining.output_folder import locked_output

OWNER = """
import sys, time
from pathlib import Path
from accelerate import Accelerator
from esvit_hf.pretraining.output_folder import locked_output

with locked_output(Path(sys.argv[1]), Accelerator(cpu=True)):
    print("locked", flush=True)
    time.sleep(100)
"""


def test_the_owner_is_named_and_what_a_killed_one_leaves_locks_nothing(tmp_path):
    accelerator = Accelerator(cpu=True)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout.readline() == "locked\n"
        named = f"{tmp_path} is in use by process {owner.pid} on {os.uname().nodename}: wait"
        with pytest.raises(ValueError, match=named), locked_output(tmp_path, accelerator):
            pass
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    assert (tmp_path / ".run.lock").exists()
    with locked_output(tmp_path, accelerator):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with (
        pytest.raises(ValueError, match=f"run.output_dir {folder} cannot be written .*: give"),
        locked_output(folder, Accelerator(cpu=True)),
    ):
        pass


def test_a_refused_run_leaves_no_folder(tmp_path):
    with (
        pytest.raises(RuntimeError),
        locked_output(tmp_path / "new" / "run", Accelerator(cpu=True)),
    ):
        raise RuntimeError("refused")
    assert not (tmp_path / "new").exists()
