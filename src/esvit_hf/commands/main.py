"""The command `esvit`: convert, export and publish models, list the zoo, pretrain, evaluate
features.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from esvit_hf.commands import evaluate, transfer
from esvit_hf.commands.command_line import report_errors
from esvit_hf.commands.page import show_page
from esvit_hf.commands.pictures import save_attention, save_correspondence, save_neighbors
from esvit_hf.data.repacking import repack
from esvit_hf.data.shards import write_index
from esvit_hf.features.files import save_features
from esvit_hf.hub.push import push_folder
from esvit_hf.reference.folders import convert_to_file, convert_to_folder
from esvit_hf.zoo.build import build_folder
from esvit_hf.zoo.entry_cards import write_cards
from esvit_hf.zoo.listing import list_entries

__all__ = ["main"]

# Jobs whose command line is the signature of a function.
_FUNCTIONS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "features": save_features,
    "index": write_index,
    "repack": repack,
    "correspond": save_correspondence,
    "attention": save_attention,
    "neighbors": save_neighbors,
    "demo": show_page,
    "transfer": transfer.transfer,
}
# What `esvit zoo` does beside listing.
_ZOO_FUNCTIONS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "build": build_folder,
    "cards": write_cards,
}
_ZOO_HELP = {
    "build": "Turn a released checkpoint of the authors into a Hub folder.",
    "cards": "Write the cards of all entries.",
}
_HELP = {
    "convert": (
        "Turn a checkpoint of the reference implementation into a model folder, or the other way "
        "round."
    ),
    "export": "Write a network as an ONNX file and compare it with PyTorch.",
    "pretrain": "Pretrain a vision backbone: esvit pretrain RECIPE.yaml [--field value ...].",
    "features": "Save a feature row for every image of a data set.",
    "index": "Write the index of parquet or tar shards that pretraining streams.",
    "repack": "Write a zip or TSV pack of the reference implementation as parquet shards.",
    "evaluate": "Evaluate a vision model with several protocols, and write a report with figures.",
    "correspond": "Draw the regions of two images that look most alike.",
    "attention": "Draw where each attention head looks from a point of an image.",
    "neighbors": "Draw the images of a data set that are most similar to an image.",
    "demo": "Open a page to play with a vision model.",
    "transfer": (
        "Transfer one or two models to many data sets by logistic regression, and write a table."
    ),
    "zoo": "List the checkpoints of the zoo, or build the Hub folder of one.",
    "push": "Publish a model folder on the Hub, checked and in one commit.",
}


@report_errors
def main(command_line: Sequence[str] | None = None) -> int:
    """Run one job; the last line of its output is a JSON object with the results.

    Args:
        command_line: words after `esvit`; those of the process if None.

    Returns:
        Exit code: 0, 2 after an error that the user can correct, 128 + signal after a stop by
        SIGINT (130) or SIGTERM (143).
    """
    words = list(sys.argv[1:] if command_line is None else command_line)
    if words[:1] == ["pretrain"]:
        return _pretrain(words[1:])
    arguments = _parser().parse_args(words).as_dict()
    job = arguments["job"]
    functions: dict[str, Callable[..., dict[str, Any] | None]] = {
        "convert": _convert,
        "evaluate": evaluate.run,
        "export": _export,
        "zoo": _zoo,
        "push": push_folder,
        **_FUNCTIONS,
    }
    result = functions[job](**arguments[job])
    if result is not None:
        print(json.dumps(result))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="esvit",
        description="EsViT for the Hugging Face ecosystem.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    jobs = parser.add_subcommands(required=True, dest="job")
    for job, text in _HELP.items():
        job_parser = ArgumentParser(description=text, exit_on_error=False, allow_abbrev=False)
        if job == "transfer":
            transfer.add_arguments(job_parser)
        elif job == "evaluate":
            evaluate.add_arguments(job_parser)
        elif job in _FUNCTIONS:
            job_parser.add_function_arguments(_FUNCTIONS[job], as_group=False, as_positional=True)
        elif job == "convert":
            _add_convert_arguments(job_parser)
        elif job == "export":
            job_parser.add_function_arguments(_export, as_group=False, as_positional=True)
        elif job == "zoo":
            job_parser.add_function_arguments(list_entries, as_group=False, skip={"json"})
            job_parser.add_argument(
                "--json", action="store_true", help="one JSON object in place of a table"
            )
        elif job == "push":
            _add_push_arguments(job_parser)
        jobs.add_subcommand(job, job_parser, help=text)
        if job == "zoo":
            _add_zoo_actions(job_parser)
    return parser


def _add_convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=str, help="checkpoint.pth of the reference; a folder with --to-reference"
    )
    parser.add_argument(
        "output", type=Path, help="folder to write, new or empty; a new file with --to-reference"
    )
    parser.add_argument(
        "--arch",
        type=str | None,
        help="family of the network; recognized from the names if not given",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=str,
        default=[],
        metavar="FIELD=VALUE",
        help="fields of the configuration, for example image_size=160 num_heads=[1,2,3,6]",
    )
    parser.add_argument(
        "--weights",
        type=Literal["teacher", "student"],
        default="teacher",
        help="which network of the checkpoint",
    )
    parser.add_argument("--with-heads", action="store_true", help="heads and centers come along")
    parser.add_argument(
        "--to-reference", action="store_true", help="write a checkpoint in the reference's layout"
    )


def _add_push_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="output of a run, a conversion, or save_pretrained"
    )
    parser.add_argument(
        "repo_id", type=str, help="NAME/MODEL on the Hub; made if it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--revision", type=str | None, help="branch to commit to, made if it does not exist"
    )
    parser.add_argument(
        "--create-pr",
        action="store_true",
        help="open a pull request instead of changing the branch",
    )
    parser.add_argument("--dry-run", action="store_true", help="build and check, and send nothing")


def _convert(
    checkpoint: str,
    output: Path,
    arch: str | None,
    set: list[str],
    weights: Literal["teacher", "student"],
    with_heads: bool,
    to_reference: bool,
) -> dict[str, Any]:
    if not to_reference:
        return convert_to_folder(
            checkpoint,
            output,
            weights=weights,
            arch=arch,
            with_heads=with_heads,
            config_fields=_read_fields(set),
        )
    if arch is not None or set or weights != "teacher":
        raise ValueError(
            "--to-reference takes a model folder, which decides --arch, --set and --weights: leave "
            "them out"
        )
    return convert_to_file(checkpoint, output, with_heads=with_heads)


def _read_fields(assignments: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(
                f"--set {assignment!r} is not FIELD=VALUE: write for example image_size=160"
            )
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def _export(
    model: str, output: Path, *, image_size: int | list[int] | None = None, opset: int = 18
) -> dict[str, Any]:
    """Write a network as an ONNX file and compare it with PyTorch.

    Args:
        model: Hub name or folder of one of this project's models or classifiers.
        output: file to write, for example model.onnx.
        image_size: height and width of the input in pixels, one number for both; the model's own if
            not given.
        opset: version of the ONNX operators.
    """
    from esvit_hf.export.onnx import export_onnx

    try:
        written = export_onnx(model, output, image_size=image_size, opset=opset)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return {
        "output": str(written.path),
        "image_size": list(written.image_size),
        "outputs": list(written.outputs),
        "largest_difference": written.largest_difference,
    }


def _add_zoo_actions(parser: ArgumentParser) -> None:
    actions = parser.add_subcommands(required=False, dest="action")
    for action, text in _ZOO_HELP.items():
        action_parser = ArgumentParser(description=text, exit_on_error=False, allow_abbrev=False)
        action_parser.add_function_arguments(
            _ZOO_FUNCTIONS[action], as_group=False, as_positional=True
        )
        actions.add_subcommand(action, action_parser, help=text)


def _zoo(action: str | None = None, **arguments: Any) -> dict[str, Any] | None:
    if action is None:
        return list_entries(**arguments)
    return _ZOO_FUNCTIONS[action](**arguments[action])


def _pretrain(words: Sequence[str]) -> int:
    from esvit_hf.pretraining import parse_arguments, pretrain

    result = pretrain(parse_arguments(words))
    if result.interrupted:
        print(f"stopped at step {result.steps}; continue with the same command and --resume true")
        return 128 + result.signal
    print(f"done: {result.output_dir} holds the teacher, load it with AutoModel.from_pretrained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
