"""Registration at the first import of transformers, which takes seconds and must not be forced."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from esvit_hf.registration.auto_classes import register_networks

__all__ = ["register_with_transformers"]

_AWAITED = "transformers"


def register_with_transformers() -> None:
    """Register the networks now if transformers is there, otherwise when it is imported."""
    if sys.modules.get(_AWAITED) is not None:
        register_networks()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Finds transformers where the other finders do, and lets its loader register at the end."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            _register_after(spec)
        return spec


def _register_after(spec: ModuleSpec) -> None:
    # The loader stays what it is for everybody who asks it for something else, such as resources.
    loader = spec.loader
    assert loader is not None
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        register_networks()

    loader.exec_module = execute_and_register  # type: ignore[method-assign]
