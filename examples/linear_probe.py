"""Train a linear classifier on frozen features: `python examples/linear_probe.py MODEL DATASET`."""

from esvit_hf.commands.command_line import run
from esvit_hf.evaluation.jobs import measure_linear_probe as main

if __name__ == "__main__":
    run(main)
