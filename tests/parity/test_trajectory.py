"""Nine optimizer steps against the reference: losses, schedules, student, teacher and centers."""

import pytest
from accelerate import Accelerator
from tests.support.process_group import run_on_processes
from tests.support.trajectory import make_step, run, run_share

CASES = ["trajectory_swin_view", "trajectory_swin_view_region"]


@pytest.mark.parametrize("name", CASES)
def test_schedules_equal_reference(golden, name):
    case = golden(name)
    schedules = make_step(case, accelerator=Accelerator(cpu=True), batch_size=3).schedules
    for ours, theirs in (
        ("learning_rate", "lr"),
        ("weight_decay", "weight_decay"),
        ("teacher_momentum", "momentum"),
    ):
        for step in range(9):
            assert getattr(schedules, ours)(step) == pytest.approx(
                float(case.tensors[theirs][step]), rel=1e-9, abs=1e-15
            )


@pytest.mark.parametrize("name", CASES)
def test_trajectory_equals_reference(golden, name, device):
    run(golden(name).to(device), Accelerator(cpu=device.type == "cpu"), [slice(None)])


@pytest.mark.parametrize("name", CASES)
def test_accumulated_trajectory_equals_reference(golden, name):
    run(golden(name), Accelerator(cpu=True), [slice(image, image + 1) for image in range(3)])


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "processes", "mode"),
    [(CASES[1], 3, "split"), (CASES[1], 2, "same"), (CASES[0], 2, "same")],
)
def test_trajectory_of_several_processes_equals_reference(name, processes, mode):
    run_on_processes(processes, run_share, name, mode)
