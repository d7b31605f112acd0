"""Classify test images by their nearest training images: `python examples/knn.py MODEL DATASET`."""

from esvit_hf.commands.command_line import run
from esvit_hf.evaluation.jobs import measure_knn as main

if __name__ == "__main__":
    run(main)
