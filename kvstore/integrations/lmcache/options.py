"""Options: what an operator may set of the plug-in in LMCache's extra_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore import options
from kvstore.integrations.options import StoreOptions

_OF_LMCACHE = {"module_path", "class_name"}


@dataclass(frozen=True, kw_only=True)
class Options(StoreOptions):
    """The plug-in's options."""

    revision: str = ""
    """Tells weights apart whose model has the same name."""

    @classmethod
    def of(cls, plugin: str, extra_config: Mapping[str, Any]) -> Options:
        """Read the options of one plug-in, "remote_storage_plugin.<plugin>.<option>".

        Raises:
            InvalidArgumentError: `master` is missing, an option is unknown, or a value is wrong.
        """
        prefix = f"remote_storage_plugin.{plugin}."
        given = {}
        for name, value in extra_config.items():
            option = name.removeprefix(prefix)
            if option != name and option not in _OF_LMCACHE and "." not in option:
                given[option] = value
        return options.read(cls, given, f"extra_config, {prefix}*: ")
