"""The benchmark for GPUs, tried on the CPU with tiny networks."""

import json
import subprocess
import sys

import pytest
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def measure(path, minutes):
    words = ["--device", "cpu", "--tiny", "true", "--minutes", minutes, "--output", str(path)]
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text()), done.stdout


def test_every_row_can_be_measured(tmp_path):
    report, table = measure(tmp_path / "gpu.json", "60")
    assert report["not measured"] == {}
    assert "| step of esvit_vil, batch 2, compiled by blocks |" in table
    assert "| gaps between kernels |" in table


def test_rows_that_do_not_fit_are_named(tmp_path):
    report, table = measure(tmp_path / "gpu.json", "0")
    assert report["rows"] == {}
    assert set(report["not measured"].values()) == {"out of time"}
    assert "not measured: step of esvit_vil, batch 2, compiled by blocks: out of time" in table
