"""Pretrain a backbone with EsViT: `accelerate launch examples/pretrain.py RECIPE.yaml [--field value ...]`."""

import sys

from esvit_hf.command_line import report_errors
from esvit_hf.pretraining import parse_arguments, pretrain


@report_errors
def main() -> int:
    """Run the recipe; 130 is the exit code of an interrupted run."""
    result = pretrain(parse_arguments(sys.argv[1:]))
    if result.interrupted:
        print(f"stopped at step {result.steps}; continue with the same command and --resume true")
        return 130
    print(f"done: {result.output_dir} holds the teacher, load it with AutoModel.from_pretrained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
