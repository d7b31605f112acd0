"""Command lines of typed functions, and what is wrong with one in one line."""

import argparse
import collections.abc
import dataclasses
import difflib
import inspect
import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from esvit_hf.common.arguments import PythonOnly, argument_types, read_docstring
from esvit_hf.common.errors import one_line
from esvit_hf.common.files import expand_homes

__all__ = ["check_options", "describe", "nearest", "parse_function"]


def parse_function(
    function: Callable[..., Any],
    words: Sequence[str],
    *,
    program: str,
    groups: Mapping[str, type] = MappingProxyType({}),
) -> dict[str, Any]:
    """Read a command line whose arguments are those of a function, and whose help is its docstring.

    Parameters that may be given by place are positional; of these a list takes one word or more.
    The others are flags; booleans take `--flag`, `--no_flag`, and `--flag true` or `false`. The
    fields of a dataclass are flags with its parameter's name and a dot.

    Args:
        function: typed function with a docstring of the Google style, perhaps `flat_arguments`.
        words: the command line behind the program's name.
        program: name of the program, for help and errors.
        groups: dataclasses by the names of keyword arguments that the signature does not name; one
            whose fields are all at their defaults is not among the results.

    Returns:
        Arguments for the function.

    Raises:
        ValueError: words do not fit; the message says which and what is expected.
        SystemExit: after `--help`.
    """
    parameters = _parameters(function, groups)
    documented = read_docstring(function)
    parser = ArgumentParser(
        prog=program,
        usage=_usage(program, parameters),
        description=_escape(documented.purpose),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    types: dict[str, Any] = {}
    for name, hint, kind, default in parameters:
        if _is_group(hint):
            types |= _add_group(parser, name, hint, default)
        elif kind is Parameter.KEYWORD_ONLY:
            types[name] = hint
            _add_flag(parser, name, hint, default, documented.arguments.get(name, ""))
        else:
            several = get_origin(hint) in _LISTS
            parser.add_argument(
                name,
                type=get_args(hint)[0] if several else hint,
                nargs="+" if several else None,
                metavar=name.upper(),
                help=_escape(documented.arguments.get(name, "")),
            )
    problems: list[str] = []
    values = expand_homes(_read_words(parser, words, types, problems))
    arguments: dict[str, Any] = {}
    for name, hint, _, _ in parameters:
        try:
            arguments[name] = hint(**values.get(name, {})) if _is_group(hint) else values.get(name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    for name, group in groups.items():
        if arguments[name] == group():
            del arguments[name]
    return arguments


def check_options(kind: type, options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check options that a caller gives by name against the fields of a dataclass.

    Args:
        kind: dataclass.
        options: values by the names of fields.
        name: what the options belong to, for messages.

    Returns:
        The options, with values that a command line would give as well turned into their types.

    Raises:
        ValueError: a field does not exist, or a value has another type; all such problems together.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    hints = argument_types(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    checked, problems = {}, []
    for option, value in options.items():
        if option not in known:
            hint = nearest(option, known) or f": it has {', '.join(known) or 'no options'}"
            problems.append(f"{name} has no option {option!r}{hint}")
            continue
        try:
            checked[option] = parser.parse_object({option: value}).as_dict()[option]
        except (ArgumentError, TypeError, ValueError):
            problems.append(f"{name}.{option} is {value!r}: give {describe(hints[option])}")
    if problems:
        raise ValueError("; ".join(problems))
    return checked


def describe(hint: Any) -> str:
    """Say what values a type has, in words: `an integer or a list of integers`.

    Args:
        hint: type hint.

    Returns:
        The words.
    """
    return _join(_descriptions(hint))


def nearest(name: str, known: Iterable[str]) -> str:
    """Propose the known name that resembles a wrong one most.

    Args:
        name: the wrong name.
        known: names that exist.

    Returns:
        `: did you mean NAME?`, or nothing if none resembles it.
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def _is_group(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


class _Parameter(NamedTuple):
    name: str
    hint: Any
    kind: Any
    default: Any


def _parameters(function: Callable[..., Any], groups: Mapping[str, type]) -> list[_Parameter]:
    hints = argument_types(function)
    found = [
        _Parameter(name, _on_a_command_line(hints[name]), given.kind, given.default)
        for name, given in inspect.signature(function).parameters.items()
        if given.kind is not Parameter.VAR_KEYWORD and _on_a_command_line(hints[name]) is not None
    ]
    named = [
        _Parameter(name, group, Parameter.KEYWORD_ONLY, group()) for name, group in groups.items()
    ]
    return found + named


def _add_group(parser: ArgumentParser, name: str, hint: type, default: Any) -> dict[str, Any]:
    documented = read_docstring(hint)
    group = parser.add_argument_group(name, _escape(documented.purpose))
    hints, types = argument_types(hint), {}
    for field in dataclasses.fields(hint):
        flag, text = f"{name}.{field.name}", documented.arguments.get(field.name, "")
        types[flag] = _on_a_command_line(hints[field.name])
        _add_flag(group, flag, types[flag], getattr(default, field.name), text)
    return types


def _add_flag(container: Any, name: str, hint: Any, default: Any, text: str) -> None:
    if default is Parameter.empty:
        options: dict[str, Any] = {"required": True}
    else:
        options = {"default": default}
        # Without a value, off and empty need no words.
        unset = default is None or default is False or default == {}
        text += "" if unset else f" (default: {_as_word(default)})"
    container.add_argument(
        f"--{name}", type=hint, metavar=_metavar(hint), help=_escape(text), **options
    )


def _escape(text: str) -> str:
    return text.replace("%", "%%")


class _HelpFormatter(argparse.HelpFormatter):
    """Help without the parser's spellings of a flag that users need not know."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar)
        flags = [flag for flag in action.option_strings if not flag.endswith("+")]
        if action.metavar == _BOOLEAN:
            return f"{flags[0]}, --no_{flags[0][2:]}"
        return ", ".join(flags) + (f" {action.metavar}" if action.metavar else "")


_BOOLEAN = "true|false"
_ITEMS = {
    int: ("an integer", "integers", "INTEGER"),
    float: ("a number", "numbers", "NUMBER"),
    bool: ("true or false", "true or false", _BOOLEAN),
    str: ("a text", "texts", "TEXT"),
    Path: ("a path", "paths", "PATH"),
}
_LISTS = (list, tuple, collections.abc.Sequence)


def _on_a_command_line(hint: Any) -> Any:
    """A type without those members that only Python can give; None if nothing is left."""
    union = get_origin(hint) in (Union, UnionType)
    members = [
        member
        for member in (get_args(hint) if union else [hint])
        if member is not PythonOnly and get_origin(member) is not collections.abc.Callable
    ]
    return Union[tuple(members)] if set(members) - {NoneType} else None  # noqa: UP007


def _members(hint: Any) -> list[Any]:
    """The types of a value, without None; a path is not called a text as well."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    left_out = {NoneType, *([str] if Path in members else [])}
    return [member for member in members if member not in left_out]


def _descriptions(hint: Any) -> list[str]:
    found: list[str] = []
    for member in _members(hint):
        origin = get_origin(member) or member
        if origin is Literal:
            found += map(str, get_args(member))
        elif member in _ITEMS:
            found.append(_ITEMS[member][0])
        elif origin in _LISTS:
            item = next(iter(get_args(member)), None)
            found.append(f"a list of {_ITEMS[item][1]}" if item in _ITEMS else "a list")
        elif origin is dict:
            found.append("a mapping such as '{name: value}'")
        else:
            found.append(f"a {getattr(origin, '__name__', origin)}")
    return found


def _join(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _metavar(hint: Any) -> str:
    words: list[str] = []
    for member in _members(hint):
        origin = get_origin(member) or member
        if origin is Literal:
            words += map(str, get_args(member))
        elif origin in _LISTS:
            words.append("[...]")
        elif member in _ITEMS:
            words.append(_ITEMS[member][2])
        else:
            words.append("{...}")
    return "|".join(words)


def _as_word(value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, separators=(",", ":"))


def _usage(program: str, parameters: Iterable[_Parameter]) -> str:
    words = [program]
    for name, hint, kind, default in parameters:
        if kind is not Parameter.KEYWORD_ONLY:
            words.append(name.upper() + (" ..." if get_origin(hint) in _LISTS else ""))
        elif default is Parameter.empty:
            words.append(f"--{name} {_metavar(hint)}")
    return " ".join([*words, "[--flag value ...]"])


def _is_boolean(hint: Any) -> bool:
    return _members(hint) == [bool]


def _read_words(
    parser: ArgumentParser, words: Sequence[str], types: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Read a command line; add what is wrong to the problems, and leave it out."""
    rest = list(_spell_out(parser, words, types, problems))
    while True:
        try:
            return dict(parser.parse_args(rest).as_dict())
        except ArgumentError as error:
            wrong = _wrong_flag(str(error))
            # Without a flag that is wrong, words are missing or too many that are not.
            is_known = wrong is not None and wrong in types
            if is_known or not problems:
                problems.append(_explain(str(error), parser, rest, types))
            if wrong is None or not is_known:
                return {}
            rest = list(_without(wrong, rest))


def _wrong_flag(message: str) -> str | None:
    found = re.match(r'Parser key "([^"]+)"|argument --([\w.]+).*: expected one argument', message)
    return found and (found[1] or found[2])


def _without(name: str, words: Sequence[str]) -> Iterator[str]:
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word.partition("=")[0] != f"--{name}":
            yield word
        elif word == f"--{name}" and rest and not rest[-1].startswith("--"):
            rest.pop()


def _spell_out(
    parser: ArgumentParser, words: Sequence[str], types: Mapping[str, Any], problems: list[str]
) -> Iterator[str]:
    """Give every boolean flag its value; leave out flags that do not exist, and say so."""
    known = [flag for flag in parser._option_string_actions if not flag.endswith("+")]
    booleans = {f"--{name}" for name, hint in types.items() if _is_boolean(hint)}
    mappings = tuple(
        f"--{name}."
        for name, hint in types.items()
        if any(get_origin(member) is dict for member in _members(hint))
    )
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        flag, equals, _ = word.partition("=")
        if not flag.startswith("--") or flag == "--":
            yield word
        elif flag in booleans and not equals:
            given = bool(rest) and rest[-1].lower() in ("true", "false")
            yield f"{flag}={rest.pop().lower() if given else 'true'}"
        elif f"--{flag.removeprefix('--no_')}" in booleans and flag not in known and not equals:
            yield f"--{flag.removeprefix('--no_')}=false"
        elif flag in known or flag.startswith(mappings):
            yield word
        else:
            problems.append(f"{parser.prog} has no flag {flag}{nearest(flag, known)}")
            if not equals and rest and not rest[-1].startswith("--"):
                rest.pop()


def _explain(
    message: str, parser: ArgumentParser, words: Sequence[str], types: Mapping[str, Any]
) -> str:
    """Translate what the parser says."""
    wrong = re.match(r'Parser key "([^"]+)"', message)
    if wrong and wrong[1] in types:
        value = _given_value(wrong[1], words)
        return f"--{wrong[1]} is {value!r}: give {describe(types[wrong[1]])}"
    if missing := re.match(r"the following arguments are required: (.*)", message):
        names = [f"--{name}" if name in types else name.upper() for name in missing[1].split(", ")]
        verb = "is" if len(names) == 1 else "are"
        return f"{', '.join(names)} {verb} missing: {parser.usage}"
    if empty := re.match(r"argument --([\w.]+).*: expected one argument", message):
        return f"--{empty[1]} has no value: give {describe(types[empty[1]])}"
    if surplus := re.match(r"unrecognized arguments: (.*)", message):
        return f"{surplus[1]!r} is too much: {parser.usage}"
    return one_line(message)


def _given_value(name: str, words: Sequence[str]) -> str:
    """The last value of a flag in a command line."""
    given = ""
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == f"--{name}":
            given = value if equals else words[index + 1]
    return given
