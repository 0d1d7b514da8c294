"""The layout and the dependency rule: a module imports only what stands below it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
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
    "addresses",
    "audit",
    "certificates",
    "errors",
    "sizes",
    "store_metrics",
    "clock",
    "config",
    "config_table",
    "environment",
    "folders",
    "http",
    "http_connections",
    "isolation",
    "limits",
    "lmdb_file",
    "logging",
    "metrics",
    "minted",
    "options",
    "polling",
    "ports",
    "proofs",
    "refusals",
    "reload",
    "scopes",
    "security",
    "sessions",
    "tasks",
    "text",
    "tls",
    "ucx",
}
# What each package of kvstore may import from kvstore, beside itself, _native and the ground floor.
MAY_IMPORT = {
    "": {"client", "embedded"},  # kvstore/__init__.py re-exports the public API
    "_proto": set(),
    "client": {"topology"},
    "gpu": {"client"},
    "master": {"_proto"},
    "node": {"_proto", "topology"},
    "topology": set(),
    "discovery": set(),
    "doctor": {"", "_proto", "topology"},
    "embedded": {"client", "master", "node"},
    "planning": set(),
    "support": set(),
    "replay": set(),
    "integrations": {"", "client"},
    "compat": {"", "client", "embedded", "integrations"},  # the guard is for any engine
    "cli": {
        "",
        "_proto",
        "client",
        "compat",
        "discovery",
        "doctor",
        "embedded",
        "master",
        "node",
        "planning",
        "replay",
        "support",
        "topology",
    },
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
    # What names a library is no setting of a server; compat reads another store's names, and gpu
    # where a user's caches are.
    may_read = path.stem in ("config", "environment") or package_of(path) in (
        "compat",
        "gpu",
        "ucx",
    )
    if not may_read:
        assert "os.environ" not in path.read_text(), f"{path}: only config reads the environment"


NATIVE = ROOT / "native"
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def rooms_below() -> dict[str, set[str]]:
    """Each room of native/src with all rooms below it, as native/CMakeLists.txt declares them."""
    declared = re.findall(
        r"^kv_room\((\w+)([^)]*)\)", (NATIVE / "CMakeLists.txt").read_text(), re.M
    )
    below: dict[str, set[str]] = {}
    for room, rest in declared:  # lowest first: what it names must stand above it in the file
        direct = rest.split()[1:]
        below[room] = set(direct).union(*(below[name] for name in direct))
    return below


def wrong_includes(path: Path, text: str) -> list[str]:
    """What a file of native/src includes although its room's DEPENDS do not reach it."""
    room = path.relative_to(NATIVE / "src").parts[0]
    allowed = rooms_below()[room] | {room}
    return [name for name in INCLUDE.findall(text) if name.split("/")[0] not in allowed]


def native_sources() -> list[Path]:
    return sorted(path for path in (NATIVE / "src").rglob("*") if path.suffix in {".h", ".cpp"})


def test_native_includes_follow_from_the_rooms_that_cmake_declares() -> None:
    assert {path.name for path in (NATIVE / "src").iterdir()} == set(rooms_below())
    assert len(native_sources()) > 200
    wrong = {
        str(path.relative_to(NATIVE)): found
        for path in native_sources()
        if (found := wrong_includes(path, path.read_text()))
    }
    assert not wrong, f"only the room's own headers and those below it: {wrong}"
    for path in native_sources():
        for name in INCLUDE.findall(path.read_text()):
            assert (NATIVE / "src" / name).is_file(), f"{path} includes {name}"


@pytest.mark.parametrize(
    ("file", "include"),
    [
        ("base/status.h", "wire/frame.h"),
        ("store/evictor.h", "net/channel.h"),
        ("master/copy_planner.cpp", "client/channel_pool.h"),
        ("nvme/log.h", "index/index.h"),
    ],
)
def test_an_include_from_above_is_found(file: str, include: str) -> None:
    planted = f'#include "base/status.h"\n#include "{include}"\n'
    assert wrong_includes(NATIVE / "src" / file, planted) == [include]


def test_only_the_bindings_see_nanobind() -> None:
    for path in (ROOT / "native").rglob("*.[ch]*"):
        if "bindings" not in path.parts and path.suffix in {".h", ".cpp"}:
            assert "nanobind" not in path.read_text(), path


def test_files_stay_small() -> None:
    for pattern in (
        "kvstore/**/*.py",
        "native/**/*.cpp",
        "native/**/*.h",
        "tests/**/*.py",
        "tests/**/*.cpp",
        "tests/**/*.h",
    ):
        for path in ROOT.glob(pattern):
            if "_proto" in path.parts:
                continue
            limit = 800 if "tests" in path.parts else 600
            lines = len(path.read_text().splitlines())
            assert lines <= limit, f"{path} has {lines} lines: two nouns in one?"


FUNCTION_LINES = 70  # a function has fewer
PYTHON_CODE = ("kvstore", "tests", "bench", "native", "deploy")
NATIVE_CODE = ("native/src", "native/tests", "native/bindings", "native/fuzz", "native/bench")
TOKENS_TO_BLANK = re.compile(
    r"""
    //[^\n]*
    | /\*.*?\*/
    | R"(?P<end>[^\s()\\]{0,16})\(.*?\)(?P=end)"
    | "(?:\\.|[^"\\\n])*"
    | (?<![0-9A-Za-z_])'(?:\\.|[^'\\\n])+'
    | ^[ ]*\#(?:\\\n|[^\n])*
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
SCOPE = re.compile(  # what opens a brace at namespace or class level, and is no function
    r"(?:template\s*<[^{}]*?>\s*)?(?:inline\s+|typedef\s+)*"
    r"(?:namespace|class|struct|union|enum)\b(?:\s+\w+\([^()]*\))*[^()]*$|extern\s*$"
)
GOES_ON = re.compile(r"\s*[,{]")
ACCESS = re.compile(r"\s*(?:public|protected|private):")


def native_functions(text: str) -> list[tuple[int, int]]:
    """The functions of a source that clang-format wrote: (first line, number of lines) of each.

    A scanner of braces, not a parser. Lambdas and local classes count to the function around them.
    """
    code = TOKENS_TO_BLANK.sub(lambda found: "\n" * found[0].count("\n"), text)
    found: list[tuple[int, int]] = []
    inside = 0  # braces that are open within a function
    begin = 0  # of the declaration that is being read
    for brace in re.finditer(r"[{};]", code):
        if inside:
            inside += {"{": 1, "}": -1, ";": 0}[brace[0]]
            # Members that a constructor initialises with braces come before its body.
            if inside == 0 and not GOES_ON.match(code, brace.end()):
                first, last = code.count("\n", 0, begin), code.count("\n", 0, brace.start())
                found.append((first + 1, last - first + 1))
                begin = brace.end()
            continue
        header = code[begin : brace.start()]
        if label := ACCESS.match(header):
            begin += label.end()
            header = code[begin : brace.start()]
        if brace[0] == "{" and re.search(r"\(|\]\s*$", header) and not SCOPE.match(header.lstrip()):
            begin += len(header) - len(header.lstrip())
            inside = 1
        else:
            begin = brace.end()
    return found


def python_functions(text: str) -> list[tuple[int, int]]:
    """The functions of a module: (first line, number of lines) of each, without decorators."""
    return [
        (node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def own_files(folders: tuple[str, ...], suffixes: set[str]) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "_proto" not in path.parts
    )


def test_functions_stay_small() -> None:
    sources = own_files((*NATIVE_CODE, "tests", "bench"), {".h", ".cpp"})
    modules = own_files(PYTHON_CODE, {".py"})
    counted = {path: native_functions(path.read_text()) for path in sources}
    counted |= {path: python_functions(path.read_text()) for path in modules}
    assert sum(len(counted[path]) for path in sources) > 3_000
    assert sum(len(counted[path]) for path in modules) > 2_000
    long = [
        f"{path.relative_to(ROOT)}:{first} has {lines} lines"
        for path, functions in counted.items()
        for first, lines in functions
        if lines >= FUNCTION_LINES
    ]
    assert not long, f"functions stay below {FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize(
    "header",
    [
        "void f() {",
        "TEST_F(StoreTest, KeepsWhatItWasGiven) {",
        "Store::Store(const Options& options) : size_{options.size}, name_{'{'} {",
        "template <class T>\nstruct stat_of<T> Store::stat(T* to, char brace = '{') const {",
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {',
        "const auto decode = [] {",
    ],
)
def test_a_long_native_function_is_found(header: str) -> None:
    lines = FUNCTION_LINES - header.count("\n") - 2
    body = '    call("}", [&] { return 1; });  // }\n' * lines
    text = (
        f"#define BRACE {{ \\\n    {{\nnamespace {{\nclass Local {{\n  public:\n{header}\n{body}}}"
    )
    assert native_functions(text) == [(6, FUNCTION_LINES)]


def test_a_long_python_function_is_found() -> None:
    text = "@property\nasync def f() -> None:\n" + "    call()\n" * (FUNCTION_LINES - 1)
    assert python_functions(text) == [(2, FUNCTION_LINES)]


def test_top_level_is_the_design_cards() -> None:
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - BUILT
    assert found == TOP_LEVEL
