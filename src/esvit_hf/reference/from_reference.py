"""Checkpoints of the reference implementation become models of this package.

The names of the reference are mapped by rules that are data: one `NetworkRule` a network family.
Every tensor of a file is used, recognized as recomputed, or named in an error.
"""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel

from esvit_hf.pretraining.objectives.region import RegionObjective
from esvit_hf.pretraining.objectives.view import ViewObjective
from esvit_hf.reference.baseline_rules import BASELINE_RULES
from esvit_hf.reference.experiments import fields_of_experiment, read_experiment, read_options
from esvit_hf.reference.network_rules import ESVIT_RULES, NetworkRule, Rename

State = dict[str, Tensor]

NETWORK_RULES: tuple[NetworkRule, ...] = (*ESVIT_RULES, *BASELINE_RULES)

REFERENCE_HEADS: dict[str, tuple[str, str]] = {
    ViewObjective.name: ("head", "center"),
    RegionObjective.name: ("head_dense", "center_grid"),
}
"""What the reference calls the head and the center of an objective."""

# What wraps a network: data parallelism, compilation, a head beside it.
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.|backbone\.|model\.)+")
# Where a file keeps its only network.
_NETWORK_KEYS = ("model", "state_dict")
_CLASSIFIER = re.compile(r"(?:head|fc|classifier|linear|head\.fc)\.(?:weight|bias)")
# Which regions of a shifted window attend to each other; other code of Swin keeps it.
_MASK = re.compile(r"layers\.\d+\.blocks\.\d+\.attn_mask")

_COUNTER = "num_batches_tracked"

# Names behind the head's. A head of one layer has no index in the reference.
_HEAD_RENAMES: tuple[Rename, ...] = (
    (r"mlp\.(\d+)\.(\w+)", r"layers.\1.\2"),
    (r"mlp\.(weight|bias)", r"layers.0.\1"),
    (r"last_layer\.weight_g", r"prototype_gain"),
    (r"last_layer\.weight_v", r"prototype_direction"),
)


def read_reference_checkpoint(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint file of the reference, or one with a network alone, without executing
    anything in it.

    Args:
        path: `checkpoint.pth` as the reference's training writes it, or a file that maps names to
            tensors, at the top or under `model` or `state_dict`; also `.safetensors`.

    Returns:
        The dictionary in the file; `student` and `teacher`, where present, map names to tensors. A
        network alone is the `teacher`.

    Raises:
        ValueError: If there is no file, or it is truncated, foreign, or holds objects other than
            tensors, plain values and the `argparse.Namespace` of the run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {str(path)!r}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # A pickle of another protocol than the reference's either loads completely or is
            # refused.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            checkpoint = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    # A damaged or hostile pickle can end in any exception.
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is not a readable checkpoint of the reference: {_reason(error)}"
        ) from error
    networks = [
        name
        for name in ("student", "teacher")
        if isinstance(checkpoint, dict) and name in checkpoint
    ]
    if not networks:
        checkpoint, networks = {"teacher": _find_network(checkpoint, path)}, ["teacher"]
    for name in networks:
        state = checkpoint[name]
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
        ):
            raise ValueError(
                f"{name!r} in {str(path)!r} does not map names to tensors: not a reference "
                f"checkpoint."
            )
    return checkpoint


def _find_network(content: Any, path: Path) -> State:
    """Find the tensors of a file that holds one network."""
    while isinstance(content, dict):
        inside = [content[key] for key in _NETWORK_KEYS if isinstance(content.get(key), dict)]
        if not inside:
            if content and all(isinstance(value, Tensor) for value in content.values()):
                return dict(content)
            break
        content = inside[0]
    raise ValueError(
        f"{str(path)!r} holds no network: neither 'student' nor 'teacher' weights, nor names and "
        f"tensors, at the top or under {' or '.join(map(repr, _NETWORK_KEYS))}."
    )


def _reason(error: Exception) -> str:
    # PyTorch's own message advises to load without protection.
    if blocked := re.search(r"\bGLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds {blocked[1]}, which could run code; only tensors, plain values and "
            f"argparse.Namespace are read."
        )
    return f"it is truncated or no file of PyTorch or safetensors ({type(error).__name__})."


def split_reference_state_dict(
    state: Mapping[str, Tensor], *, arch: str | None = None
) -> tuple[State, State, State]:
    """Separate backbone, view head and region head and give their tensors this package's names.

    Args:
        state: `student` or `teacher` of a reference checkpoint, with or without the
            names of what wraps it, such as `module.`.
        arch: Family of the backbone; recognized from the names if None.

    Returns:
        State dicts of the backbone, of the view head and of the region head; a head that is not
        there is empty.

    Raises:
        ValueError: If the family is not recognized or a name belongs to no part.
    """
    return _split(state, _find_rule(state, arch))[:3]


def _find_weights(checkpoint: Mapping[str, Any], path: str | Path, weights: str) -> State:
    if weights not in checkpoint:
        there = ", ".join(name for name in ("student", "teacher") if name in checkpoint)
        raise ValueError(f"{str(path)!r} holds no {weights!r} weights, only: {there}.")
    state: State = checkpoint[weights]
    return state


def _find_rule(state: Mapping[str, Tensor], arch: str | None) -> NetworkRule:
    known = ", ".join(rule.name for rule in NETWORK_RULES)
    if arch is not None:
        for rule in NETWORK_RULES:
            if rule.name == arch:
                return rule
        raise ValueError(f"arch={arch!r} is unknown; known: {known}.")
    for rule in NETWORK_RULES:
        if any(re.fullmatch(rule.signature, plain_name(name)) for name in state):
            return rule
    sample = ", ".join(list(state)[:3])
    raise ValueError(f"the names ({sample}, ...) belong to none of the known networks ({known}).")


def plain_name(name: str) -> str:
    """Return a tensor's name without those of what wraps the network, such as `module.`."""
    return name[match.end() :] if (match := _WRAPPERS.match(name)) else name


def rename(name: str, renames: tuple[Rename, ...]) -> str | None:
    """Translate one name.

    Args:
        name: Name of the reference, without what wraps the network.
        renames: Patterns and replacements of a `NetworkRule`.

    Returns:
        The name in this package, with `{part}` where the reference stacks several tensors; None if
        no pattern matches.
    """
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


def _split(state: Mapping[str, Tensor], rule: NetworkRule) -> tuple[State, State, State, State]:
    backbone: State = {}
    view_head: State = {}
    region_head: State = {}
    recomputed: State = {}
    shared: State = {}
    unused = []
    for reference_name, tensor in state.items():
        name = plain_name(reference_name)
        # Empty are the positions of the global tokens of a ViL's stage that has none.
        if not tensor.numel() or _CLASSIFIER.fullmatch(name) or _MASK.fullmatch(name):
            continue
        if name.startswith("head_dense."):
            part, renamed = region_head, rename(name.removeprefix("head_dense."), _HEAD_RENAMES)
        elif name.startswith("head."):
            part, renamed = view_head, rename(name.removeprefix("head."), _HEAD_RENAMES)
        else:
            part, renamed = backbone, rename(name, rule.renames)
            if renamed is not None and rule.recomputed and re.fullmatch(rule.recomputed, renamed):
                part = recomputed
            elif rule.shared and re.fullmatch(rule.shared, name):
                part = shared
        if renamed is None:
            unused.append(reference_name)
        elif renamed in part:
            raise ValueError(
                f"the checkpoint names the tensor {name!r} twice, such as {reference_name!r}: "
                f"remove one network from it."
            )
        elif part is backbone and "{part}" in renamed:
            pieces = tensor.chunk(len(rule.parts))
            backbone |= {
                renamed.format(part=name): piece
                for name, piece in zip(rule.parts, pieces, strict=False)
            }
        else:
            pointwise = (
                rule.pointwise and part is backbone and re.fullmatch(rule.pointwise, renamed)
            )
            part[renamed] = tensor.flatten(1) if pointwise else tensor
    if unused:
        raise ValueError(
            f"{len(unused)} names have no place in a {rule.name} network: {', '.join(unused[:8])}."
        )
    for name, tensor in shared.items():
        if name not in backbone or not torch.equal(backbone[name], tensor):
            raise ValueError(
                f"the checkpoint has a second {name} of its own, for global tokens: only networks "
                f"whose global tokens share the projections of all others can be converted."
            )
    return backbone, view_head, region_head, recomputed


def load_reference_model(
    path: str | Path,
    *,
    weights: Literal["teacher", "student"] = "teacher",
    arch: str | None = None,
    experiment: str | Path | None = None,
    **config_fields: Any,
) -> PreTrainedModel:
    """Turn the backbone of a reference checkpoint into a model of this package.

    The configuration is read off the shapes of the tensors; what leaves no trace there
    (`drop_path_rate`, an `image_size` that makes no window smaller, the windows and heads of a
    CvT-T) has its default unless given, by the experiment file or by the command line that a
    checkpoint keeps.

    Args:
        path: `checkpoint.pth` of the reference.
        weights: Which network of the file; the paper evaluates the teacher.
        arch: Family of the backbone; recognized from the names if None.
        experiment: YAML file that the reference trained the network with (`--cfg`).
        **config_fields: Configuration fields that win over all others.

    Returns:
        The base model in eval mode.

    Raises:
        ValueError: If a file is unreadable, a name or shape does not fit, a tensor is missing or
            left over, or a setting has no counterpart.
    """
    return model_from_checkpoint(
        read_reference_checkpoint(path), path, weights, arch, config_fields, experiment
    )


def find_family(
    checkpoint: Mapping[str, Any], path: str | Path, weights: Literal["teacher", "student"]
) -> str:
    """Recognize the network of a checkpoint that is read already.

    Args:
        checkpoint: What `read_reference_checkpoint` returns.
        path: Where it was read, for errors.
        weights: Which network of the file.

    Returns:
        Name of its rule.

    Raises:
        ValueError: If the file does not hold these weights, or they are of no known network.
    """
    return _find_rule(_find_weights(checkpoint, path, weights), None).name


def model_from_checkpoint(
    checkpoint: Mapping[str, Any],
    path: str | Path,
    weights: Literal["teacher", "student"],
    arch: str | None,
    config_fields: dict[str, Any],
    experiment: str | Path | None = None,
) -> PreTrainedModel:
    """Do the work of `load_reference_model` for a checkpoint that is read already.

    Args:
        checkpoint: What `read_reference_checkpoint` returns.
        path: Where it was read, for errors.
        weights: Which network of the file.
        arch: Family of the backbone; recognized from the names if None.
        config_fields: Configuration fields that win over all others.
        experiment: As in `convert_checkpoint`.

    Returns:
        The base model in eval mode.

    Raises:
        ValueError: As in `load_reference_model`.
    """
    rule = _find_rule(_find_weights(checkpoint, path, weights), arch)
    backbone, _, _, recomputed = _split(checkpoint[weights], rule)
    if left := [name for name in checkpoint[weights] if _CLASSIFIER.fullmatch(plain_name(name))]:
        tqdm.write(f"{path}: a classifier is left out, {' and '.join(left)}")
    settings = {} if experiment is None else read_experiment(experiment)
    # The command line of the run, which the checkpoint keeps, wins over its file.
    options = read_options(getattr(checkpoint.get("args"), "opts", None) or ())
    fields = [fields_of_experiment(part, rule.name) for part in (settings, options)]
    try:
        config = rule.infer_config(backbone, fields[0] | fields[1] | config_fields)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} is no complete {rule.name} network: {error} is missing."
        ) from error
    model = AutoModel.from_config(config, **rule.model_options)
    _load(model, backbone, recomputed)
    return model.eval()


def position_indices(model: PreTrainedModel) -> State:
    """Compute the indices of relative positions, which the reference keeps in its checkpoints.

    Args:
        model: Network of this package, or any other.

    Returns:
        By name of the attention layer, with `relative_position_index` behind it, (N,) int64.
    """
    return {
        f"{name}.relative_position_index": module.position_index()
        for name, module in model.named_modules()
        if hasattr(module, "relative_position_bias_table")
    }


def _load(model: PreTrainedModel, state: State, recomputed: State) -> None:
    expected = model.state_dict()
    # Older files have no counters, which nothing is computed from.
    state = {name: expected[name] for name in expected if name.endswith(_COUNTER)} | state
    if missing := [name for name in expected if name not in state]:
        raise ValueError(
            f"the checkpoint lacks {len(missing)} tensors of the network: {', '.join(missing[:8])}."
        )
    if surplus := [name for name in state if name not in expected]:
        raise ValueError(
            f"the network has no place for {len(surplus)} tensors: {', '.join(surplus[:8])}."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(expected[name].shape)} in the network: correct the configuration fields."
            )
    indices = position_indices(model)
    for name, tensor in recomputed.items():
        if name not in indices or not torch.equal(indices[name], tensor.flatten()):
            raise ValueError(f"{name} in the checkpoint differs from what the network computes.")
    model.load_state_dict(state)
