"""The lines of a driver program: JSON commands in, JSON answers out."""

from __future__ import annotations

import json
import os
import queue
import sys
import traceback
from collections.abc import Callable
from typing import Any


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Say that all is imported, then carry commands out until the end of stdin.

    "open" makes an engine of its arguments, in place of the one before it, with its "environ" in
    the environment, and answers with `about`; any other command is a method of the engine, which
    answers with a dict. `about` and `close` must be among them.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what the engine prints is no answer
    engine: Any = None
    set_names: list[str] = []

    def carry_out(do: str, **how: Any) -> dict[str, Any]:
        nonlocal engine
        if do == "open":
            before, engine = engine, None
            if before is not None:
                before.close()
            while set_names:
                del os.environ[set_names.pop()]
            for name, value in how.pop("environ", {}).items():
                os.environ[name] = value
                set_names.append(name)
            engine = make(how)
            return dict(engine.about())
        assert engine is not None, "no engine is open"
        return dict(getattr(engine, do)(**how))

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in iter(sys.stdin.readline, ""):
        try:
            answer = carry_out(**json.loads(line))
        except queue.Empty:
            answer = {"stuck": True}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    if engine is not None:
        engine.close()
