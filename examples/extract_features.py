"""Save a feature row for every image of a data set: `python examples/extract_features.py MODEL
DATASET --output F`.
"""

from esvit_hf.commands.command_line import run
from esvit_hf.features.files import extract_features as main

if __name__ == "__main__":
    run(main)
