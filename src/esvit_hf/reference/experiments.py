"""What the reference's experiment files and architecture strings say about a network."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["fields_of_experiment", "read_experiment", "read_options"]

# A setting of the reference becomes a field; or has to have one of some values, or, with None, no
# effect on what the weights compute.
_Meaning = str | tuple[Any, ...] | None

_COMMON: dict[str, _Meaning] = {
    "DROP": None,
    "DROP_RATE": None,
    "ATTN_DROP_RATE": None,
    "INIT": None,
    "DROP_PATH": "drop_path_rate",
    "DROP_PATH_RATE": "drop_path_rate",
}
_MEANINGS: Mapping[str, Mapping[str, _Meaning]] = {
    "swin": {
        **_COMMON,
        "PATCH_SIZE": "patch_size",
        "DIM_EMBED": "embed_dim",
        "DEPTHS": "depths",
        "NUM_HEADS": "num_heads",
        "WINDOW_SIZE": "window_size",
        "MLP_RATIO": "mlp_ratio",
        "QKV_BIAS": "qkv_bias",
        "USE_APE": "use_absolute_embeddings",
        "PATCH_NORM": (True,),
    },
    "cvt": {
        **_COMMON,
        "NUM_STAGES": None,
        "PATCH_SIZE": "patch_sizes",
        "PATCH_STRIDE": "patch_strides",
        "PATCH_PADDING": "patch_padding",
        "DIM_EMBED": "hidden_sizes",
        "DEPTH": "depths",
        "NUM_HEADS": "num_heads",
        "WINDOW_SIZE": "window_size",
        "MLP_RATIO": "mlp_ratio",
        "QKV_BIAS": "qkv_bias",
        "KERNEL_QKV": "qkv_kernel_sizes",
        "PADDING_QKV": None,
        "REL_POS_EMBED": "relative_position_bias",
        "RES_STEM": "deep_stem",
        # A flagged stage masks its windows as if they were shifted, and never shifts them.
        "SHIFT": (False,),
    },
    "vil": {
        **_COMMON,
        "AVG_POOL": (False,),
        "NORM_EMBED": (True,),
        "ARCH": None,
        "ATTN_TYPE": ("longformerhand", "longformerauto"),
        "MODE": "sparse_training_mode",
        "ONLY_GLOBAL": (False,),
        "SHARE_W": (True,),
        "SW_EXACT": (0,),
        "WITH_SE": (None, "None", False, ""),
        # The reference builds its norms with another epsilon, whatever is said here.
        "LN_EPS": None,
        "POOL_METHOD": None,
        "SE_MLP_BALANCE": None,
        "SE_MLP_RATIO": None,
        "SHARE_KV": None,
        "VIL_MODE_SWITCH": None,
    },
}
# Settings of a stage in an architecture string: the reference's default and the field.
_STAGE_SETTINGS: Mapping[str, tuple[int, str | None]] = {
    "l": (1, None),
    "h": (3, "num_heads"),
    "d": (192, "hidden_sizes"),
    "n": (1, "depths"),
    "s": (1, "sparse_stages"),
    "g": (1, "num_global_tokens"),
    "p": (2, "patch_sizes"),
    "f": (7, "window_size"),
    "a": (1, "position_embedding"),
    "r": (0, None),
}


def read_experiment(path: str | Path) -> dict[str, Any]:
    """Read an experiment file and the files that it is based on.

    Args:
        path: YAML file of the reference.

    Returns:
        The settings, nested as in the file; those of the file win over those that it is based on.

    Raises:
        ValueError: If a file is missing or holds no settings.
    """
    path = Path(path)
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{str(path)!r} is not a readable experiment file of the reference ({reason})."
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"{str(path)!r} holds no settings of an experiment.")
    merged: dict[str, Any] = {}
    for base in settings.pop("BASE", None) or ():
        if base:
            _merge(merged, read_experiment(path.parent / base))
    return _merge(merged, settings)


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """Nest settings from a command line of the reference.

    Args:
        options: Dotted names, each followed by its value.

    Returns:
        The settings, nested as in an experiment file.

    Raises:
        ValueError: the last name has no value.
    """
    if len(options) % 2:
        raise ValueError(f"{options[-1]!r}, the last option of the reference, has no value")
    settings: dict[str, Any] = {}
    for name, value in zip(options[::2], options[1::2], strict=True):
        place = settings
        *sections, last = name.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        try:
            place[last] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            place[last] = value
    return settings


def _merge(settings: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), dict):
            _merge(settings[name], value)
        else:
            settings[name] = value
    return settings


def fields_of_experiment(settings: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Say what settings of the reference mean for a configuration.

    Args:
        settings: Nested settings, not all of them need to be there.
        family: Family of the network, as in the `arch` argument of the conversion.

    Returns:
        Configuration fields.

    Raises:
        ValueError: If a setting asks for something that the networks of this package do not have,
            by name.
    """
    spec = dict(settings.get("MODEL", {}).get("SPEC", {}))
    spec |= spec.pop("MSVIT", {})
    if spec and family not in _MEANINGS:
        raise ValueError(f"experiment files say nothing about a {family} network.")
    fields: dict[str, Any] = {}
    for name, value in spec.items():
        meaning = _MEANINGS[family].get(name, ())
        if isinstance(meaning, str):
            fields[meaning] = value
        elif meaning is not None and not _allowed(value, meaning):
            works = f"it has to be {meaning[0]}" if meaning else f"a {family} has no such setting"
            raise ValueError(f"{name}={value!r} cannot be converted: {works}.")
    if "ARCH" in spec:
        fields |= _fields_of_architecture(spec["ARCH"])
    if "sparse_training_mode" in fields:
        fields["sparse_training_mode"] = _training_mode(fields["sparse_training_mode"])
    if family == "cvt":
        _check_convolution_padding(spec)
        stages = spec.get("NUM_STAGES")
        fields = {
            name: value[:stages] if isinstance(value, list) else value
            for name, value in fields.items()
        }
    if size := settings.get("TRAIN", {}).get("IMAGE_SIZE"):
        # The reference builds its networks for squares.
        fields["image_size"] = size[0]
    return fields


def _allowed(value: Any, values: Iterable[Any]) -> bool:
    stages = value if isinstance(value, list | tuple) else [value]
    return all(stage in values for stage in stages)


def _training_mode(mode: Any) -> str:
    if mode == 0:
        return "all"
    if isinstance(mode, int) and mode > 0:
        return "random_neighbor"
    raise ValueError(
        f"MODE={mode!r} cannot be converted: it has to be 0 (all neighbors) or above (one of them)."
    )


def _check_convolution_padding(spec: Mapping[str, Any]) -> None:
    kernels, padding = spec.get("KERNEL_QKV"), spec.get("PADDING_QKV")
    if kernels and padding and [kernel // 2 for kernel in kernels] != list(padding):
        raise ValueError(
            f"PADDING_QKV={padding} cannot be converted: it has to keep the size of the map, with "
            f"KERNEL_QKV={kernels} that is {[kernel // 2 for kernel in kernels]}."
        )


def _fields_of_architecture(text: str) -> dict[str, Any]:
    """Read the stages of a Vision Longformer, such as "l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,h6,..."."""
    stages: list[dict[str, int]] = []
    for number, part in enumerate(text.split("_"), start=1):
        stage = {name: default for name, (default, _) in _STAGE_SETTINGS.items()}
        for setting in part.split(","):
            if setting[:1] not in stage or not setting[1:].isdecimal():
                raise ValueError(f"ARCH={text!r} cannot be read: {setting!r} is no setting.")
            stage[setting[0]] = int(setting[1:])
        if stage["l"] != number:
            raise ValueError(f"ARCH={text!r} cannot be read: stage {number} is called {part!r}.")
        if stage["r"]:
            raise ValueError(
                f"r{stage['r']} in ARCH={text!r} cannot be converted: the networks of this package "
                f"have no pooled windows."
            )
        stages.append(stage)
    fields: dict[str, Any] = {
        field: [stage[name] for stage in stages]
        for name, (_, field) in _STAGE_SETTINGS.items()
        if field
    }
    # In the reference a full stage makes all that follow full.
    sparse = [bool(stage) for stage in fields["sparse_stages"]]
    full = sparse.index(False) if False in sparse else len(sparse)
    fields["sparse_stages"] = [stage < full for stage in range(len(sparse))]
    fields["position_embedding"] = [
        "absolute" if stage else "relative" for stage in fields["position_embedding"]
    ]
    return fields
