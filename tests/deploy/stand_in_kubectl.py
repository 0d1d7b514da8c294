"""kubectl as upgrade.sh uses it, on a cluster that is a file: stand_in_kubectl.py STATE ARGUMENTS.

No cluster runs here. What the API server and the kubelet do with a patch is the test's part, with
real nodes; this only answers, and refuses whatever upgrade.sh has no business to ask.
"""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

POD_ANSWERS = {
    "jsonpath={.metadata.uid} {.spec.nodeName} {.status.podIP}": "place",
    "jsonpath={.status.containerStatuses[?(@.name=='store')].restartCount}": "restarts",
    "jsonpath={.spec.containers[?(@.name=='store')].image}": "image",
    "jsonpath={.status.conditions[?(@.type=='Ready')].status}": "ready",
}
SET_ANSWERS = {
    "jsonpath={.spec.updateStrategy.type}": "strategy",
    "jsonpath={.spec.template.spec.containers[0].name}": "container",
}
SELECTOR = "go-template={{range $k, $v := .spec.selector.matchLabels}}{{$k}}={{$v}},{{end}}"


def answer(state: dict[str, Any], words: list[str]) -> str:
    assert words.pop(0) == "--namespace=vllm", words
    match words:
        case ["get", "pod", name, "-o", path]:
            return str(state["pods"][name][POD_ANSWERS[path]])
        case ["get", "statefulset/cache-store", "-o", path] if path == SELECTOR:
            return "app=kvstore,component=store,"
        case ["get", "statefulset/cache-store", "-o", path]:
            return str(state["set"][SET_ANSWERS[path]])
        case [
            "get",
            "pods",
            "--selector=app=kvstore,component=store",
            "--sort-by=.metadata.name",
            *_,
        ]:
            return " ".join(sorted(state["pods"]))
        case ["set", "image", "statefulset/cache-store", change]:
            state["set"]["image"] = change.removeprefix("store=")
            return ""
        case ["patch", "pod", name, "--type=strategic", patch]:
            (container,) = json.loads(patch.removeprefix("--patch="))["spec"]["containers"]
            assert container["name"] == "store"
            # Only the image: the API server refuses nearly everything else of a pod.
            assert set(container) == {"name", "image"}
            state["pods"][name]["image"] = container["image"]
            return ""
    raise AssertionError(f"kubectl is asked for {words}")


def main() -> None:
    path = Path(sys.argv[1])
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        print(answer(state, sys.argv[2:]), end="")
        file.seek(0)
        file.truncate()
        json.dump(state, file)


if __name__ == "__main__":
    main()
