"""Which checkpoint a run continues from, which ones are kept, and what it says about a damaged one
or a full disk.
"""

import json
import resource
import threading
import warnings

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from esvit_hf.pretraining import checkpoint
from esvit_hf.pretraining.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    Progress,
    checkpoint_name,
    choose_checkpoint,
    complete_checkpoints,
    find_checkpoint,
    remove_checkpoints,
)
from esvit_hf.pretraining.checkpoint_files import RunState
from esvit_hf.pretraining.metrics_log import MetricsLog
from esvit_hf.pretraining.optimizer import build_optimizer


def make_writer(folder, step=0, kept=3):
    progress = Progress(total_batch=4, num_processes=1)
    progress.step = step
    network, teacher = torch.nn.Linear(300, 300), torch.nn.Linear(300, 300)
    state = RunState(
        network, teacher, torch.nn.Module(), build_optimizer(network), {"progress": progress}
    )
    return CheckpointWriter(Accelerator(cpu=True), state, folder / "checkpoints", kept)


def save(folder, step, kept=3):
    with make_writer(folder, step, kept) as writer:
        writer.save(step)
    return folder / "checkpoints" / checkpoint_name(step)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_last_ones_are_kept_and_leftovers_removed(tmp_path):
    (tmp_path / "checkpoints" / "step-000000001.partial").mkdir(parents=True)
    for step in (1, 2, 3, 10):
        save(tmp_path, step, kept=2)
    assert names(tmp_path) == ["step-000000003", "step-000000010"]
    save(tmp_path, 11, kept=1)
    assert names(tmp_path) == ["step-000000011"]


def truncate(checkpoint):
    path = checkpoint / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    return "student.safetensors has .* bytes instead of"


def flip_a_bit(checkpoint):
    path = checkpoint / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "content of student.safetensors has changed"


def remove_a_file(checkpoint):
    (checkpoint / "state.json").unlink()
    return "state.json is missing"


def cut_the_manifest(checkpoint):
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[:100])
    return "manifest.json is missing or cannot be read"


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_a_file, cut_the_manifest])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_checkpoint(tmp_path) == second
    with pytest.warns(UserWarning, match=f"step-000000002 is damaged.*{damage(second)}"):
        assert find_checkpoint(tmp_path) == first
    damage(first)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="every checkpoint in .* is damaged"),
    ):
        find_checkpoint(tmp_path)


def test_a_damaged_newest_checkpoint_does_not_push_out_a_sound_one(tmp_path):
    save(tmp_path, 5)
    truncate(save(tmp_path, 9))
    save(tmp_path, 7, kept=1)
    with pytest.warns(UserWarning):
        assert find_checkpoint(tmp_path).name == "step-000000007"
    save(tmp_path, 9, kept=1)
    assert find_checkpoint(tmp_path).name == "step-000000009"
    assert names(tmp_path) == ["step-000000009"]


def test_where_a_run_starts(tmp_path):
    assert choose_checkpoint(tmp_path, resume=False, overwrite=False) is None
    with pytest.raises(ValueError, match="start without --run.resume"):
        choose_checkpoint(tmp_path, resume=True, overwrite=False)
    (tmp_path / "recipe.yaml").touch()
    assert choose_checkpoint(tmp_path, resume=True, overwrite=False) is None
    checkpoint = save(tmp_path, 1)
    assert choose_checkpoint(tmp_path, resume=True, overwrite=False) == checkpoint
    with pytest.raises(
        ValueError, match="holds the checkpoints of a run: continue it with --run.resume true"
    ):
        choose_checkpoint(tmp_path, resume=False, overwrite=False)
    assert choose_checkpoint(tmp_path, resume=False, overwrite=True) is None
    remove_checkpoints(tmp_path)
    assert choose_checkpoint(tmp_path, resume=False, overwrite=False) is None
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="holds a network: replace it with --run.overwrite true"):
        choose_checkpoint(tmp_path, resume=False, overwrite=False)


def test_progress_of_other_steps_is_refused():
    saved = Progress(total_batch=32, num_processes=2)
    saved.step, saved.broken_images = 7, 3
    same = Progress(total_batch=32, num_processes=2)
    same.load_state_dict(saved.state_dict())
    assert (same.step, same.broken_images) == (7, 3)
    with pytest.warns(UserWarning, match="written by 2 processes"):
        Progress(total_batch=32, num_processes=1).load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match="steps of 32 images.*would take 16"):
        Progress(total_batch=16, num_processes=2).load_state_dict(saved.state_dict())


# Too small for any file; for the weights; for the optimizer.
@pytest.mark.parametrize("limit", [100, 100_000, 400_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_older_ones(tmp_path, limit):
    older = save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"step-000000002 cannot be written.*last complete one is .*0001"
        ):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == [older.name]
    assert find_checkpoint(tmp_path) == older
    save(tmp_path, 2)


def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(tmp_path, monkeypatch):
    goes_on = threading.Event()
    write = checkpoint.write_state
    monkeypatch.setattr(checkpoint, "write_state", lambda *words: (goes_on.wait(10), write(*words)))
    with make_writer(tmp_path, step=7) as writer:
        student, progress = writer.state.student, writer.state.records["progress"]
        before = student.weight.detach().clone()
        writer.save(7)
        with torch.no_grad():
            student.weight.add_(1)
        progress.step = 8
        assert complete_checkpoints(writer.folder) == []
        writer.check()
        goes_on.set()
        (saved,) = writer.complete()
    assert torch.equal(load_file(saved / "student.safetensors")["weight"], before)
    assert json.loads((saved / "state.json").read_text())["progress"]["step"] == 7


def test_a_checkpoint_that_fails_beside_the_run_ends_it(tmp_path):
    (tmp_path / "checkpoints").touch()
    for find_out in ("check", "wait", "save", "leave"):
        with (
            pytest.raises(CheckpointError, match="step-000000001 cannot be written"),
            make_writer(tmp_path) as writer,
        ):
            writer.save(1)
            writer.complete()
            if find_out == "save":
                writer.save(2)
            elif find_out != "leave":
                getattr(writer, find_out)()
    with pytest.raises(KeyboardInterrupt), make_writer(tmp_path) as writer:
        writer.save(1)
        raise KeyboardInterrupt


def test_an_error_without_a_message_is_named_after_its_kind(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError

    monkeypatch.setattr("esvit_hf.pretraining.checkpoint.write_state", fail)
    with pytest.raises(CheckpointError, match=r"cannot be written to .* \(OSError\); there is no"):
        save(tmp_path, 1)


def test_metrics_are_cut_at_the_checkpoint_and_survive_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 3, f"only{step}": 1}) for step in (2, 4, 6)]
    path.write_text(
        "\n".join([lines[0], lines[1], '{"step": 5, "lo', lines[2], '{"step": 8, "loss": 0.1'])
    )
    with pytest.warns(UserWarning, match="line [35] was cut") as caught:
        log = MetricsLog(Accelerator(cpu=True), path, first_step=4)
    assert len(caught) == 2
    assert path.read_text() == f"{lines[0]}\n{lines[1]}\n"
    assert log.last == {"loss": 4 / 3, "only2": 1, "only4": 1}
    MetricsLog(Accelerator(cpu=True), path, first_step=0)
    assert path.read_text() == ""
