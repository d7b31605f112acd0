"""The launch configurations in `examples/accelerate`, and steps on a student in shards."""

import json
import os
import subprocess
import sys
import time

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from tests.support.chaos import command
from tests.support.paths import EXAMPLES
from tests.support.process_group import run_on_processes, start_program
from tests.support.sharded_step import compare_shards_with_replicas

from esvit_hf.pretraining.launching import check_engine

FOLDER = EXAMPLES / "accelerate"
CPU = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
PROCESSES = {
    "one_gpu": ("NO", 1, 1),
    "eight_gpus": ("MULTI_GPU", 1, 8),
    "four_machines": ("MULTI_GPU", 4, 32),
    "fsdp2_zero2": ("FSDP", 1, 8),
    "fsdp2_zero3": ("FSDP", 1, 8),
    "two_cpu_processes": ("MULTI_GPU", 1, 2),
}


def test_accelerate_reads_every_configuration():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == PROCESSES.keys()
    for name, expected in PROCESSES.items():
        config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
        assert (
            config.distributed_type.value,
            config.num_machines,
            config.num_processes,
        ) == expected
        if "fsdp" in name:
            assert config.fsdp_config["fsdp_version"] == 2
            assert config.fsdp_config["fsdp_reshard_after_forward"] is name.endswith("3")


def test_the_slurm_script_is_sound_bash():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_engines_with_steps_of_their_own_are_refused(kind):
    with pytest.raises(
        ValueError, match="optimizer step inside the backward pass.*fsdp2_zero2.yaml"
    ):
        check_engine(kind)


def test_fsdp_of_version_1_is_refused():
    with pytest.raises(ValueError, match="set fsdp_version to 2.*fsdp2_zero2.yaml"):
        check_engine(DistributedType.FSDP, has_flat_parameters=True)
    check_engine(DistributedType.FSDP)


@pytest.mark.distributed
@pytest.mark.slow
def test_the_cpu_configuration_starts_two_processes(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words = [
        *launcher,
        str(FOLDER / "two_cpu_processes.yaml"),
        *command(tmp_path / "run", 2, resume=False),
    ]
    done = subprocess.run(words, env=CPU, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 steps of 32 images on 2 x cpu" in done.stdout
    assert (
        json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    )


@pytest.mark.distributed
def test_steps_in_shards_equal_steps_with_replicas():
    run_on_processes(2, compare_shards_with_replicas)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
ACCELERATE = ["-m", "accelerate.commands.launch"]
TWO_PROCESSES = [*ACCELERATE, "--config_file", str(FOLDER / "two_cpu_processes.yaml")]
ONE_PROCESS = [*ACCELERATE, "--cpu", "--num_processes", "1"]


def lines_of_a_launch(said, launcher, words):
    """What a launcher and its processes print if the command is wrong."""
    process = start_program([*launcher, "-m", "esvit_hf.commands.main", *words], said)
    process.join(timeout=120)
    assert process.exitcode not in (None, 0), said.read_text()
    # The last line comes when the launcher has ended.
    deadline = time.monotonic() + 60
    while not (lines := said.read_text().splitlines())[-1].startswith("error:"):
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
    return lines


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", [TORCHRUN, TWO_PROCESSES, ONE_PROCESS])
def test_a_mistake_is_said_by_all_together_and_last_by_the_launcher(tmp_path, launcher):
    # One process says every mistake in the same way: that of the command line takes the least time.
    words, mistake = ["index", "shards"], "OUTPUT is missing"
    if launcher is TWO_PROCESSES:
        run = command(tmp_path / "run", 2, resume=False)[1:]
        words, mistake = ["pretrain", *run, "--data.train_split", "training"], "training"
    lines = lines_of_a_launch(tmp_path / "output.txt", launcher, words)
    ours = [line for line in lines if line.startswith("error:")]
    # At once, and after what the launcher says of it.
    assert ours == [lines[-1]] * 2 and mistake in ours[0], lines
    assert not any("src/esvit_hf/pretraining" in line for line in lines)
    has_report = any(f"traceback : {ours[0]}" in line for line in lines)
    assert has_report is (launcher is not ONE_PROCESS)
