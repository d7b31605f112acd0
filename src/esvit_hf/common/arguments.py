"""Functions whose arguments are the fields of shared options, each documented once."""

import builtins
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter
from typing import Any, NamedTuple, TypeVar, get_type_hints

from esvit_hf.common import options
from esvit_hf.common.files import expand_homes

__all__ = ["Docstring", "PythonOnly", "argument_types", "flat_arguments", "read_docstring"]

Result = TypeVar("Result")

_DOCSTRING_WIDTH = 96


class PythonOnly:
    """Stands for a type that is imported for type checkers alone: no command line can give one."""


def argument_types(annotated: Any) -> dict[str, Any]:
    """Resolve the annotations of a function or class.

    Args:
        annotated: function or class; names that its module imports for type checkers alone become
            `PythonOnly`.

    Returns:
        Types by name, that of the result as `return`.
    """
    owners = annotated.__mro__ if inspect.isclass(annotated) else (inspect.unwrap(annotated),)
    names = _Names()
    for owner in reversed(owners):
        names |= vars(sys.modules[owner.__module__])
    return get_type_hints(annotated, localns=names)


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        return PythonOnly


def flat_arguments(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let callers give the fields of a function's option dataclasses as arguments of their own.

    Every parameter whose type is a dataclass and that has no default is replaced by the fields:
    those without a default stand in its place, the others follow as keywords. The docstring gets
    the fields' texts. A parameter that the docstring leaves out and that is called like a field of
    the shared options gets that field's text. `**names` stays what it is.

    Args:
        function: typed function with a docstring of the Google style.

    Returns:
        The function with flat arguments; its signature and docstring say so.
    """
    hints = argument_types(function)
    parameters = inspect.signature(function).parameters
    groups = {
        name: hints[name]
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and dataclasses.is_dataclass(hints[name])
    }
    own: list[Parameter] = []
    shared: list[Parameter] = []
    for name, parameter in parameters.items():
        if name in groups:
            for field in _field_parameters(groups[name], parameter.kind):
                (own if field.default is Parameter.empty else shared).append(field)
        else:
            own.append(parameter.replace(annotation=hints[name]))
    signature = inspect.Signature(
        # In the order of their kinds, shared options behind the function's own.
        sorted([*own, *shared], key=lambda parameter: parameter.kind),
        return_annotation=hints.get("return", Parameter.empty),
    )
    names = [name for name in parameters if parameters[name].kind is Parameter.VAR_KEYWORD]

    @functools.wraps(function)
    def flat(*args: Any, **kwargs: Any) -> Result:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        bound.apply_defaults()
        values = {name: expand_homes(value) for name, value in bound.arguments.items()}
        for name, group in groups.items():
            fields = dataclasses.fields(group)
            values[name] = group(**{field.name: values.pop(field.name) for field in fields})
        others = values.pop(names[0], {}) if names else {}
        return function(**values, **others)

    flat.__signature__ = signature  # type: ignore[attr-defined]
    flat.__annotations__ = {
        **{name: parameter.annotation for name, parameter in signature.parameters.items()},
        "return": signature.return_annotation,
    }
    flat.__doc__ = _flat_docstring(function, signature, groups)
    return flat


def _field_parameters(group: type, kind: Any) -> Iterator[Parameter]:
    hints = argument_types(group)
    for field in dataclasses.fields(group):
        default: Any = Parameter.empty
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is Parameter.empty
        yield Parameter(
            field.name,
            kind if required else Parameter.KEYWORD_ONLY,
            default=default,
            annotation=hints[field.name],
        )


class Docstring(NamedTuple):
    """A docstring of the Google style in three parts.

    Attributes:
        purpose: what stands before the arguments.
        arguments: texts by the arguments' names.
        rest: what follows them.
    """

    purpose: str
    arguments: Mapping[str, str]
    rest: str


def read_docstring(documented: Any) -> Docstring:
    """Take a docstring apart.

    Args:
        documented: function, or dataclass; a dataclass has its bases' arguments too.

    Returns:
        The parts, without line breaks inside an argument's text.
    """
    bases = documented.__mro__[1:] if inspect.isclass(documented) else ()
    arguments: dict[str, str] = {}
    for base in reversed([base for base in bases if dataclasses.is_dataclass(base)]):
        arguments |= read_docstring(base).arguments
    purpose, *sections = re.split(
        r"^(?=(?:Args|Attributes|Returns|Yields|Raises):$)",
        inspect.cleandoc(documented.__doc__ or ""),
        flags=re.MULTILINE,
    )
    rest = ""
    for section in sections:
        if section.startswith(("Args:", "Attributes:")):
            for entry in re.split(r"\n(?= {4}\S)", section.rstrip())[1:]:
                name, _, explanation = entry.strip().partition(":")
                arguments[name] = " ".join(explanation.split())
        else:
            rest += section
    return Docstring(purpose.strip(), arguments, rest.strip())


def _flat_docstring(
    function: Callable[..., Any], signature: inspect.Signature, groups: Mapping[str, type]
) -> str:
    purpose, own, rest = read_docstring(function)
    known = dict(_shared_texts())
    for group in groups.values():
        known |= read_docstring(group).arguments
    known |= own
    missing = [name for name in signature.parameters if name not in known]
    assert not missing, f"{function.__qualname__} does not document {missing}"
    indent = " " * 4
    lines = [
        textwrap.fill(
            f"{name}: {known[name]}",
            _DOCSTRING_WIDTH,
            initial_indent=indent,
            subsequent_indent=2 * indent,
        )
        for name in signature.parameters
    ]
    return "\n\n".join(filter(None, [purpose, "\n".join(["Args:", *lines]), rest]))


def _shared_texts() -> Iterator[tuple[str, str]]:
    for name in options.__all__:
        yield from read_docstring(getattr(options, name)).arguments.items()
