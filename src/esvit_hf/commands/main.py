"""The command `esvit`: one table of what it can do, imported when it is called."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import esvit_hf
from esvit_hf.commands.command_line import report_errors, without_bars_of_networks
from esvit_hf.common.command_line import nearest, parse_function
from esvit_hf.common.waiting_threads import limit_spinning

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True)
class Command:
    """What a word behind `esvit` does.

    Attributes:
        function: `module:function`; its signature is the command line, its docstring the help. What
            it returns is printed as one JSON object on the last line; None prints nothing.
        help: one line for the list of commands.
        groups: `module:mapping` from names of further arguments to dataclasses of their options; an
            argument whose options are all at their defaults is not passed.
        summary: `module:function` from what the command returns to text for people, which is
            printed before the JSON.
        reads_words: the function takes the words behind the command and returns the exit code.
        loads_networks: it may load or save networks, whose bars would break ours; one that reads
            words sees to it itself.
    """

    function: str
    help: str
    groups: str | None = None
    summary: str | None = None
    reads_words: bool = False
    loads_networks: bool = True


COMMANDS = {
    "pretrain": Command(
        "esvit_hf.commands.pretrain:pretrain_from_words",
        "Pretrain a vision backbone: esvit pretrain RECIPE [--section.field value ...].",
        reads_words=True,
    ),
    "recipes": Command(
        "esvit_hf.commands.pretrain:print_recipes",
        "List the recipes that come with the package.",
        loads_networks=False,
    ),
    "evaluate": Command(
        "esvit_hf.evaluation.evaluate:evaluate",
        "Evaluate a vision model with several protocols, and write a report with figures.",
        groups="esvit_hf.evaluation.task:TASKS",
        summary="esvit_hf.evaluation.answer:format_answer",
    ),
    "transfer": Command(
        "esvit_hf.evaluation.transfer:transfer",
        "Transfer one or two models to many data sets, and write a table.",
        summary="esvit_hf.evaluation.transfer_report:format_transfer",
    ),
    "features": Command(
        "esvit_hf.features.files:extract_features",
        "Save a feature row for every image of a data set.",
    ),
    "correspond": Command(
        "esvit_hf.commands.pictures:correspond",
        "Plot the regions of two images that look most alike.",
    ),
    "attention": Command(
        "esvit_hf.commands.pictures:attention",
        "Plot where each attention head looks from a point of an image.",
    ),
    "neighbors": Command(
        "esvit_hf.commands.pictures:neighbors",
        "Plot the images of a data set that are most similar to an image.",
    ),
    "demo": Command("esvit_hf.commands.page:show_page", "Open a page to play with a vision model."),
    "index": Command(
        "esvit_hf.commands.shards:index",
        "Write the index of parquet or tar shards that pretraining streams.",
        loads_networks=False,
    ),
    "repack": Command(
        "esvit_hf.commands.shards:repack",
        "Write a zip or TSV pack of the reference implementation as parquet shards.",
        loads_networks=False,
    ),
    "convert": Command(
        "esvit_hf.reference.conversion:convert_checkpoint",
        "Turn a checkpoint of the reference implementation into a model folder, or back.",
    ),
    "export": Command(
        "esvit_hf.commands.export:export",
        "Write a network as an ONNX file and compare it with PyTorch.",
    ),
    "push": Command(
        "esvit_hf.hub.push:push", "Publish a model folder on the Hub, checked and in one commit."
    ),
    "zoo": Command(
        "esvit_hf.commands.zoo:print_checkpoints",
        "List the checkpoints of the zoo.",
        loads_networks=False,
    ),
    "zoo build": Command(
        "esvit_hf.commands.zoo:build",
        "Turn a released checkpoint of the authors into a Hub folder.",
    ),
    "zoo cards": Command(
        "esvit_hf.zoo.entry_cards:write_cards",
        "Write the cards of all entries.",
        loads_networks=False,
    ),
}
"""What `esvit` does, by name; a name may have two words."""


@report_errors
def main(command_line: Sequence[str] | None = None) -> int:
    """Run one command; the last line of its output is a JSON object with the results.

    Args:
        command_line: words after `esvit`; those of the process if None.

    Returns:
        Exit code: 0, 2 after an error that the user can correct, 128 + signal after a stop by
        SIGINT (130) or SIGTERM (143).
    """
    limit_spinning()
    words = list(sys.argv[1:] if command_line is None else command_line)
    if words[:1] in (["--help"], ["-h"]):
        print(_overview())
        return 0
    if words == ["--version"]:
        print(f"esvit-hf {esvit_hf.__version__}")
        return 0
    name = _find_command(words)
    command, rest = COMMANDS[name], words[len(name.split()) :]
    function = _load(command.function)
    if command.reads_words:
        return int(function(rest))
    groups: Mapping[str, type] = _load(command.groups) if command.groups else {}
    arguments = parse_function(function, rest, program=f"esvit {name}", groups=groups)
    with without_bars_of_networks() if command.loads_networks else nullcontext():
        result = function(**arguments)
    if result is not None:
        if command.summary and (summary := _load(command.summary)(result)):
            print(summary)
        print(json.dumps(result))
    return 0


def _find_command(words: Sequence[str]) -> str:
    """The name of the command that the words start with."""
    if not words:
        raise ValueError(f"name what to do: esvit {', '.join(COMMANDS)}; esvit --help says more")
    first, *rest = words
    parts = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} ")]
    if parts and rest and not rest[0].startswith("-"):
        if rest[0] not in parts:
            raise ValueError(f"esvit {first} has no command {rest[0]!r}{nearest(rest[0], parts)}")
        return f"{first} {rest[0]}"
    if first not in COMMANDS:
        hint = nearest(first, COMMANDS) or ": esvit --help lists them"
        raise ValueError(f"esvit has no command {first!r}{hint}")
    return first


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: esvit COMMAND ...",
            "",
            "EsViT for the Hugging Face ecosystem.",
            "",
            *lines,
            "",
            "esvit COMMAND --help lists its arguments; esvit --version names the version.",
        ]
    )


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())
