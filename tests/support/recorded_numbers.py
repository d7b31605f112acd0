"""Writes down what the commands compute, to compare two states of the package bit for bit.

    python -m tests.support.recorded_numbers record before.json
    python -m tests.support.recorded_numbers compare before.json after.json

Make both records on one machine with the same libraries: other processors and versions round
differently. What command lines, recipes and printed results look like is said in
`recorded_commands` alone.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from tests.support.hub_server import OWNER, TOKEN, running_hub
from tests.support.recorded_commands import (
    CHECKPOINTS,
    ESVIT,
    GOLDENS,
    HEADS_FILE,
    METRICS_FILE,
    MODEL_FILE,
    NETWORK_FIELDS,
    ROOT,
    SHORT_RUN,
    TIMES,
    augmented_probe_words,
    convert_back_words,
    convert_words,
    evaluate_words,
    features_words,
    knn_numbers,
    knn_words,
    linear_probe_numbers,
    linear_probe_words,
    pretrain_words,
    pretraining_fields,
    push_words,
)


def run(
    words: list[str], *, processes: int = 1, environment: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Run one command on the CPU, offline, with one thread a process, and return its output.

    Raises:
        RuntimeError: if it fails.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *ESVIT, *words]
    settings = {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | settings | {"PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


def run_for_result(words: list[str]) -> dict[str, Any]:
    """Run one command and return the JSON object on the last line of its output."""
    result: dict[str, Any] = json.loads(run(words).splitlines()[-1])
    return result


def digest_tensor(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bits."""
    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def digest_tensors(tensors: Mapping[str, torch.Tensor], *, names: bool = True) -> str:
    """SHA-256 of tensors in any order, with their names or without."""
    lines = sorted(
        f"{name if names else ''} {digest_tensor(tensor)}" for name, tensor in tensors.items()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_metrics(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def folder_content(folder: Path) -> dict[str, Any]:
    """Weights, heads and settings of a model folder."""
    return {
        "model": digest_tensors(load_file(folder / MODEL_FILE)),
        "heads": digest_tensors(load_file(folder / HEADS_FILE), names=False),
        "settings": {
            name: json.loads((folder / name).read_text())
            for name in ("config.json", "preprocessor_config.json")
        },
    }


def pretrain(fields: dict[str, Any], folder: Path, *, processes: int = 1) -> None:
    """Run a recipe and leave its result in the folder."""
    recipe = folder.with_suffix(".yaml")
    sections: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, entry = name.partition(".")
        if entry:
            sections.setdefault(section, {})[entry] = value
        else:
            sections[section] = value
    recipe.write_text(json.dumps(sections))
    run(pretrain_words(recipe, folder), processes=processes)


def record_pretraining(workplace: Path) -> dict[str, Any]:
    """Thirty steps of every network, on one process and on two."""
    found: dict[str, Any] = {}
    for network in NETWORK_FIELDS:
        for processes in (1, 2):
            folder = workplace / f"{network}_{processes}"
            pretrain(pretraining_fields(network, processes), folder, processes=processes)
            metrics = read_metrics((folder / METRICS_FILE).read_text())
            found[folder.name] = folder_content(folder) | {"metrics": metrics}
    return found


def record_evaluation(workplace: Path) -> dict[str, Any]:
    """Every evaluation of the checkpoints that come with the repository."""
    found: dict[str, Any] = {}
    for model in CHECKPOINTS:
        report = workplace / f"{Path(model).name}_report"
        run(evaluate_words(model, report, workplace / "features"))
        found[f"evaluate {Path(model).name}"] = json.loads((report / "report.json").read_text())[
            "tasks"
        ]
    model, kept = CHECKPOINTS[0], workplace / "kept"
    found["knn"] = knn_numbers(run_for_result(knn_words(model, kept)))
    found["linear probe"] = linear_probe_numbers(run_for_result(linear_probe_words(model, kept)))
    classifier = workplace / "classifier"
    augmented = linear_probe_numbers(run_for_result(augmented_probe_words(model, classifier, kept)))
    weights = digest_tensors(load_file(classifier / MODEL_FILE))
    found["augmented linear probe"] = augmented | {"classifier": weights}
    for blocks in (1, 4):
        output = workplace / f"features_{blocks}.safetensors"
        run(features_words(model, blocks, output))
        found[f"features of {blocks} blocks"] = {
            name: digest_tensor(rows) for name, rows in load_file(output).items()
        }
    return found


def record_conversion(workplace: Path) -> dict[str, Any]:
    """Checkpoints of the reference as folders, and these folders as checkpoints again."""
    found: dict[str, Any] = {}
    for golden, fields in GOLDENS.items():
        folder, back = workplace / golden, workplace / f"{golden}.pth"
        run(convert_words(ROOT / "tests" / "goldens" / golden / "checkpoint.pth", folder, fields))
        run(convert_back_words(folder, back))
        checkpoint = dict(flatten(torch.load(back, weights_only=True)))
        tensors = {
            name: value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)
        }
        found[golden] = folder_content(folder) | {"back": digest_tensors(tensors)}
    return found


def record_push(workplace: Path) -> dict[str, Any]:
    """What a dry run says of a run's folder, and what a Hub on this machine gets of it."""
    folder, repo_id = workplace / "short_run", f"{OWNER}/short_run"
    pretrain(SHORT_RUN, folder)
    announced = run_for_result(push_words(folder, repo_id, dry_run=True))
    with running_hub() as hub:
        online = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        run(push_words(folder, repo_id, dry_run=False), environment=online)
        sent = hub.files(repo_id)
    received = workplace / "received"
    received.mkdir()
    for name, content in sent.items():
        (received / name).write_bytes(content)
    return {
        "dry run": {name: announced[name] for name in ("files", "left_out")},
        "files": sorted(sent),
        "content": folder_content(received),
        "metrics": read_metrics((received / METRICS_FILE).read_text()),
        "card": read_card((received / "README.md").read_text()),
    }


def read_card(text: str) -> dict[str, str]:
    """The sections of a model card by their headings, without the recipe and without times."""
    text = re.sub(r"```yaml\n.*?```", "", text, flags=re.DOTALL)
    kept = "\n".join(line for line in text.splitlines() if not any(time in line for time in TIMES))
    first, *sections = re.split(r"^## ", kept, flags=re.MULTILINE)
    return {"": first} | {
        section.partition("\n")[0]: section.partition("\n")[2] for section in sections
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pretraining": record_pretraining,
    "evaluation": record_evaluation,
    "conversion": record_conversion,
    "push": record_push,
}


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """List what nested dictionaries and lists hold, by path; an empty one stands for itself."""
    if isinstance(value, dict | list) and value:
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(entry, f"{path}/{key}")
    else:
        yield path, value


def record(output: Path, parts: list[str]) -> None:
    """Record parts into a JSON file."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = str(Path(folder) / "home")
        for part in parts:
            workplace = Path(folder) / part
            workplace.mkdir()
            found[part] = PARTS[part](workplace)
    output.write_text(
        json.dumps({"commit": commit.stdout.strip(), "parts": found}, indent=1) + "\n"
    )


def compare(first: Path, second: Path, parts: list[str]) -> int:
    """Print what differs between two records, and return the number of differences."""
    records = [json.loads(path.read_text()) for path in (first, second)]
    missing = [part for part in parts if any(part not in each["parts"] for each in records)]
    # As text, NaN equals NaN, and 1 is not 1.0.
    left, right = (
        {
            path: json.dumps(value)
            for part in parts
            if part not in missing
            for path, value in flatten(each["parts"][part], part)
        }
        for each in records
    )
    differing = [path for path in left | right if left.get(path) != right.get(path)]
    for path in differing:
        print(f"{path}\n  {left.get(path, 'missing')}\n  {right.get(path, 'missing')}")
    for part in missing:
        print(f"{part} is not in both records")
    commits = " and ".join(each["commit"] for each in records)
    print(f"{commits}: {len(left | right)} entries, {len(differing)} differ")
    return len(differing) + len(missing)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Record what the commands compute, or compare two records."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    recorder, comparer = actions.add_parser("record"), actions.add_parser("compare")
    recorder.add_argument("output", type=Path)
    comparer.add_argument("first", type=Path)
    comparer.add_argument("second", type=Path)
    for action in (recorder, comparer):
        action.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.output, arguments.parts)
        return 0
    return 1 if compare(arguments.first, arguments.second, arguments.parts) else 0


if __name__ == "__main__":
    sys.exit(main())
