"""The layout and the dependency rule: a module imports only what stands below it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    "Makefile",
    "README.md",
    "bench",
    "deploy",
    "kvstore",
    "native",
    "proto",
    "pyproject.toml",
    "tests",
}
BUILT = {"build", "dist"}

GROUND_FLOOR = {
    "activity",
    "errors",
    "sizes",
    "clock",
    "config",
    "http",
    "limits",
    "logging",
    "metrics",
    "reload",
    "security",
}
# What each package of kvstore may import from kvstore, beside itself, _native and the ground floor.
MAY_IMPORT = {
    "": {"client", "embedded"},  # kvstore/__init__.py re-exports the public API
    "_proto": set(),
    "client": set(),
    "master": {"_proto"},
    "node": {"_proto"},
    "embedded": {"client", "master", "node"},
    "replay": set(),
    "integrations": {"", "client"},
    "compat": {"", "client", "embedded", "integrations"},  # the guard is for any engine
    "cli": {"", "_proto", "client", "compat", "embedded", "master", "node", "replay"},
}
CLIENT_SIDE = ("client", "embedded", "")


def python_files() -> list[Path]:
    return sorted(path for path in (ROOT / "kvstore").rglob("*.py") if "_proto" not in path.parts)


def package_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "kvstore")
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "" if relative.stem == "__init__" else relative.stem


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "kvstore":
                names |= {f"kvstore.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def kvstore_imports(path: Path) -> set[str]:
    found = set()
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "kvstore":
            found.add(parts[1] if len(parts) > 1 else "")
    return found


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_python_dependency_rule(path: Path) -> None:
    package = package_of(path)
    known = set(MAY_IMPORT) | GROUND_FLOOR
    allowed = GROUND_FLOOR | {"_native", package}
    if package not in GROUND_FLOOR:
        assert package in MAY_IMPORT, f"say in MAY_IMPORT what {package} may import"
        allowed |= MAY_IMPORT[package]
    if package == "embedded":
        allowed |= {"client", "master", "node"}
    wrong = {name for name in kvstore_imports(path) if name in known and name not in allowed}
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_clock_reads_time_and_only_config_reads_the_environment(path: Path) -> None:
    imports = imported_modules(path)
    if path.stem != "clock":
        assert "time" not in imports, f"{path}: time comes from kvstore.clock"
        assert "datetime.now" not in path.read_text(), f"{path}: time comes from kvstore.clock"
    if path.stem != "config" and package_of(path) != "compat":  # another store's names
        assert "os.environ" not in path.read_text(), f"{path}: only config reads the environment"


NATIVE_LAYERS = {
    # header -> the layers (by library) whose headers it may not see
    "storage": ("segment", "chunk_allocator", "index", "client_slots", "block_store", "evictor"),
    "transport": ("frame", "messages", "socket", "channel", "event_server", "handshake"),
}


def native_includes(path: Path) -> set[str]:
    return set(re.findall(r'#include "kvstore/(\w+)\.h"', path.read_text()))


def test_storage_and_transport_never_include_each_other() -> None:
    files = [*(ROOT / "native/src").glob("*.cpp"), *(ROOT / "native/include/kvstore").glob("*.h")]
    assert files
    for path in files:
        for own, other in (("storage", "transport"), ("transport", "storage")):
            if path.stem in NATIVE_LAYERS[own]:
                wrong = native_includes(path) & set(NATIVE_LAYERS[other])
                assert not wrong, f"{path} ({own}) includes {wrong}"


def test_only_the_bindings_see_nanobind() -> None:
    for path in (ROOT / "native").rglob("*.[ch]*"):
        if "bindings" not in path.parts and path.suffix in {".h", ".cpp"}:
            assert "nanobind" not in path.read_text(), path


def test_files_stay_small() -> None:
    for pattern in ("kvstore/**/*.py", "native/**/*.cpp", "native/**/*.h", "tests/**/*.py"):
        for path in ROOT.glob(pattern):
            if "_proto" in path.parts:
                continue
            limit = 800 if "tests" in path.parts else 600
            lines = len(path.read_text().splitlines())
            assert lines <= limit, f"{path} has {lines} lines: two nouns in one?"


def test_top_level_is_the_design_cards() -> None:
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - BUILT
    assert found == TOP_LEVEL
