"""The finder that resolves `import mooncake` to the drop-in. Imports nothing of kvstore itself."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# Module of Mooncake → module of the drop-in that has its names.
MODULES = {
    "mooncake": "kvstore.compat.mooncake.surface.package",
    "mooncake.store": "kvstore.compat.mooncake.surface.store",
    "mooncake.async_store": "kvstore.compat.mooncake.surface.async_store",
    "mooncake.mooncake_config": "kvstore.compat.mooncake.surface.mooncake_config",
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of MODULES; all others come from an installed Mooncake, if any.

    An engine that also moves pages directly between engines (`mooncake.engine`) therefore still
    uses Mooncake itself for that, if it is installed.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the drop-in's modules; None for every other."""
        if name not in MODULES:
            return None
        is_package = name == "mooncake"
        spec = importlib.machinery.ModuleSpec(
            name, Loader(), origin="kvstore.compat.mooncake", is_package=is_package
        )
        if is_package:
            real = importlib.machinery.PathFinder.find_spec(name)
            spec.submodule_search_locations = list(
                (real.submodule_search_locations or []) if real is not None else []
            )
        return spec


class Loader(importlib.abc.Loader):
    """Fills a module with the names of its counterpart."""

    def exec_module(self, module: ModuleType) -> None:
        """Import the counterpart and copy its public names."""
        assert module.__spec__ is not None
        twin = importlib.import_module(MODULES[module.__spec__.name])
        module.__doc__ = twin.__doc__
        for name in twin.__all__:
            setattr(module, name, getattr(twin, name))
        module.__all__ = list(twin.__all__)  # type: ignore[attr-defined]


def insert() -> None:
    """Install the finder before all others; does nothing the second time."""
    if not any(
        type(finder).__name__ == "Finder" and type(finder).__module__ in _OURS
        for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, Finder())


_OURS = ("_kvstore_mooncake_finder", "kvstore.compat.mooncake.finder")
