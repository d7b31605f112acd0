"""YAML as people write it: `1e-3` is a number, `no` and a date are text, a repeated name is an
error.
"""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

__all__ = ["read_yaml", "write_yaml"]

# The scalars of YAML 1.2's core schema that recipes use; YAML 1.1, the library's own, reads `no`,
# `12:30` and `010` as False, 750 and 8, and `1e-3` as text.
_SCALARS = {
    "null": (re.compile(r"^(?:null|~|)$"), ["n", "~", ""]),
    "bool": (re.compile(r"^(?:true|false)$"), list("tf")),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)$"
            r"|^\.nan$"
        ),
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def _write_list(dumper: yaml.SafeDumper, items: Sequence[Any]) -> yaml.Node:
    """Write a list on one line if it is one of plain values."""
    plain = not any(isinstance(item, (list, tuple, dict)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain)


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Write text with unusual line ends in quotes: without them they are read as spaces."""
    style = '"' if set("\x85\u2028\u2029") & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(list, _write_list)
_Dumper.add_representer(tuple, _write_list)


def read_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: it is no YAML, or gives a name twice; the message has line and column.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_yaml(value: Any) -> str:
    """Write plain values so that `read_yaml` returns them."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
