"""What is done to other packages' modules once they are imported; to import them ourselves takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def after_import(module: str, function: Callable[[ModuleType], None]) -> None:
    """Calls ``function`` with the module of this full name: now if it was imported, else as soon as it is."""
    if module in sys.modules:
        function(sys.modules[module])
    else:
        sys.meta_path.insert(0, _AfterImport(module, function))


class _AfterImport(MetaPathFinder):
    """Waits for the import of one module."""

    def __init__(self, module: str, function: Callable[[ModuleType], None]) -> None:
        self.module = module
        self.function = function

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.function(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec
