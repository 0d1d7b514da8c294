"""Loaded by interpreters that a process with the drop-in starts; see kvstore.compat.mooncake.

It shadows another sitecustomize on the path and therefore runs that one too.
"""

import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _next() -> None:
    """Run the sitecustomize that this one hides, if there is one."""
    path = [one for one in sys.path if os.path.abspath(one or os.curdir) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _install() -> None:
    # The finder's file alone: it must not load kvstore into programs that never ask for mooncake.
    file = os.path.join(os.path.dirname(_HERE), "finder.py")
    spec = importlib.util.spec_from_file_location("_kvstore_mooncake_finder", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_kvstore_mooncake_finder"] = module
    spec.loader.exec_module(module)
    module.insert()


_next()
if os.environ.get("KVSTORE_COMPAT_MOONCAKE"):
    _install()
