"""Measured numbers survive the way through a file, and other files are refused by name."""

from dataclasses import replace

import pytest

from esvit_hf.hub.measurements import (
    MEASUREMENTS_FILE,
    Measurement,
    read_measurements,
    write_measurements,
)

RECORD = Measurement(
    "k-NN",
    "fashion_mnist",
    "test",
    "top1",
    74.05,
    "k = 20, T = 0.07",
    "esvit evaluate outputs/demo data",
)


def test_records_come_back(tmp_path):
    path = tmp_path / MEASUREMENTS_FILE
    records = [RECORD, replace(RECORD, random_network=59.4)]
    write_measurements(records, path)
    assert read_measurements(path) == records


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '[{"task": "k-NN"}]'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / MEASUREMENTS_FILE
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="measurements.json.*write it again"):
        read_measurements(path)
