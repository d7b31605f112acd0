"""The command line of `esvit transfer`: shared options and its own."""

import dataclasses

from jsonargparse import ArgumentParser

from esvit_hf.common.options import Compute, ModelSource
from esvit_hf.evaluation.transfer import transfer

__all__ = ["add_arguments"]

_OF_ONE_MODEL = {"model", "revision"}


def add_arguments(parser: ArgumentParser) -> None:
    """Add all options.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "models", nargs="+", type=str, help="one or two Hub names or folders of models"
    )
    parser.add_class_arguments(ModelSource, skip=_OF_ONE_MODEL)
    shared = {
        field.name for options in (ModelSource, Compute) for field in dataclasses.fields(options)
    }
    parser.add_function_arguments(transfer, as_group=False, skip={*shared, "models"})
    parser.add_class_arguments(Compute)
