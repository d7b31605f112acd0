"""One run at a time in an output folder, whatever became of the ones before."""

import os
import time

import pytest
from accelerate import Accelerator
from tests.support.process_group import start_program

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
    program, folder, said = (tmp_path / name for name in ("owner.py", "run", "output.txt"))
    program.write_text(OWNER)
    folder.mkdir()
    said.touch()
    owner = start_program([program, folder], said)
    try:
        while "locked" not in said.read_text():
            assert owner.is_alive(), said.read_text()
            time.sleep(0.01)
        named = f"{folder} is in use by process {owner.pid} on {os.uname().nodename}: wait"
        with pytest.raises(ValueError, match=named), locked_output(folder, accelerator):
            pass
    finally:
        owner.kill()
        owner.join()
    assert (folder / ".run.lock").exists()
    with locked_output(folder, accelerator):
        pass
    assert list(folder.iterdir()) == []


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
