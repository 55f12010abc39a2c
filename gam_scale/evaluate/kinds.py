"""Kinds of tasks by their names: one a file of a package, which registers by being there."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Kinds(Generic[T]):
    """The classes of a package whose modules register them.

    Args:
        package: its name.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._classes: dict[str, type[T]] = {}

    def register(self, kind: str) -> Callable[[C], C]:
        """The decorator of a class: it is found by this name, and has it as ``kind``."""

        def register(cls: C) -> C:
            assert kind not in self._classes, f"two tasks are called {kind}"
            cls.kind = kind  # type: ignore[attr-defined]
            self._classes[kind] = cls
            return cls

        return register

    def all(self) -> dict[str, type[T]]:
        """Every class by its name, in their order."""
        for module in iter_modules(import_module(self._package).__path__, f"{self._package}."):
            import_module(module.name)
        return dict(sorted(self._classes.items()))
