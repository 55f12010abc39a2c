"""Registry of task kinds by name: a package's modules register their kinds when imported."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Kinds(Generic[T]):
    """Registry of the classes that the modules of a package define.

    Args:
        package: name of the package.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._classes: dict[str, type[T]] = {}

    def register(self, kind: str) -> Callable[[C], C]:
        """Return a decorator that registers a class by this name and sets its ``kind`` to it."""

        def register(cls: C) -> C:
            assert kind not in self._classes, f"two tasks are called {kind}"
            cls.kind = kind  # type: ignore[attr-defined]
            self._classes[kind] = cls
            return cls

        return register

    def all(self) -> dict[str, type[T]]:
        """Import the package's modules and return every class by name, sorted by name."""
        for module in iter_modules(import_module(self._package).__path__, f"{self._package}."):
            import_module(module.name)
        return dict(sorted(self._classes.items()))
