"""Whether a command line of a document would be understood, without running it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
# Programs that are not ours; their options are not looked at.
OTHERS = frozenset(
    {
        *("apt-get", "cat", "cd", "cmake", "ctest", "curl", "docker", "echo", "export", "git"),
        *(
            "grep",
            "helm",
            "install",
            "kubectl",
            "ls",
            "ninja",
            "pip",
            "pytest",
            "reboot",
            "ruff",
            "sudo",
        ),
        *("systemctl", "ucx_info", "vllm"),
    }
)
_BUILT = ("build/", "dist/", ".venv/", "/")


def check_line(line: str, whole: bool = True) -> list[str]:
    """What is wrong with a line of shell.

    Args:
        line: commands joined by && or | or ;, with a comment perhaps.
        whole: False for a command that is only named, whose arguments may be missing.
    """
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        lexer.commenters = "#" if whole else ""
        words = list(lexer)
    except ValueError as error:
        return [f"{line!r}: {error}"]
    commands: list[list[str]] = [[]]
    for word in words:
        if word and not word.strip("|&;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [
        f"{' '.join(command)!r}: {problem}"
        for command in commands
        for problem in _check(command, whole)
    ]


def _check(words: list[str], whole: bool) -> list[str]:
    while words and re.match(r"[A-Za-z_]\w*=", words[0]):
        words = words[1:]
    if not words:
        return []
    program, arguments = words[0], words[1:]
    name = program.rpartition("/")[2]
    problems = _check_json(arguments)
    if name == "make":
        problems += _check_make(arguments)
    elif name in {"kvstore", "kvstore-master", "kvstore-node"}:
        problems += check_click(_ours(name), name, arguments, whole)
    elif name in {"python", "python3"}:
        problems += _check_python(arguments, whole)
    elif "/" in program and name not in OTHERS:
        if not program.startswith(_BUILT) and not (ROOT / program).exists():
            problems.append(f"there is no {program}")
    elif name not in OTHERS:
        problems.append(f"unknown program {name}")
    return problems


def _ours(name: str) -> click.Command:
    from kvstore.cli import master, node, operator

    commands: dict[str, click.Command] = {
        "kvstore": operator.main,
        "kvstore-master": master.main,
        "kvstore-node": node.main,
    }
    return commands[name]


def check_click(command: click.Command, name: str, arguments: list[str], whole: bool) -> list[str]:
    """Parse arguments as click would: subcommands, options, values and how many there must be."""
    arguments = [argument for argument in arguments if argument not in {"…", "..."}]
    parent: click.Context | None = None
    try:
        while isinstance(command, click.Group):
            settings = command.context_settings  # click keeps the first context's help options
            parent = click.Context(command, parent=parent, info_name=name, **settings)
            if not arguments:
                return [] if not whole else [f"{name} needs a command"]
            resolved, found, arguments = command.resolve_command(parent, arguments)
            assert resolved is not None and found is not None
            name, command = resolved, found
        if "--help" in arguments:
            return []
        command.make_context(name, list(arguments), parent=parent).close()
    except click.MissingParameter as error:
        return [error.format_message()] if whole else []
    except click.BadParameter as error:
        kind = getattr(error.param, "type", None)
        is_file = isinstance(kind, (click.Path, click.File))  # of the reader's machine
        return [] if is_file or not whole else [error.format_message()]
    except click.UsageError as error:
        return [error.format_message()] if whole or "no such" in str(error).lower() else []
    return []


def _check_make(arguments: list[str]) -> list[str]:
    makefile = (ROOT / "Makefile").read_text()
    targets = [argument for argument in arguments if "=" not in argument and argument[0] != "-"]
    variables = [argument.partition("=")[0] for argument in arguments if "=" in argument]
    return [
        f"the Makefile has no target {target}"
        for target in targets
        if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)
    ] + [
        f"the Makefile has no variable {variable}"
        for variable in variables
        if not re.search(rf"^{re.escape(variable)}\s*:?=", makefile, re.MULTILINE)
    ]


def _check_python(arguments: list[str], whole: bool) -> list[str]:
    if not arguments:
        return []
    first, *rest = arguments
    if first == "-m" and rest:
        return _check_module(rest[0], rest[1:], whole)
    if first.startswith("-") or first.startswith(_BUILT) or (ROOT / first).exists():
        return []
    return [f"there is no {first}"]


def _check_module(module: str, arguments: list[str], whole: bool) -> list[str]:
    if module == "pytest":
        return _check_pytest(arguments)
    if module.split(".")[0] not in {"bench", "deploy", "kvstore", "tests"}:
        return []
    if module == "kvstore.compat.mooncake":  # what follows is another program's
        return []
    place = ROOT / Path(*module.split("."))
    source = next(
        (p for p in (place.with_suffix(".py"), place / "__main__.py") if p.is_file()), None
    )
    if source is None:
        return [f"there is no module {module} to run"]
    if module == "bench":
        from bench.__main__ import main

        return check_click(main, "bench", arguments, whole)
    if module == "tests.fault.table":
        return _check_pytest(arguments)
    command: list[str] = []
    if "--" in arguments:  # what follows is a command that it runs
        end = arguments.index("--")
        arguments, command = arguments[:end], arguments[end + 1 :]
    text = source.read_text()
    return _check(command, whole) + [
        f"{module} has no option {argument}"
        for argument in (argument.partition("=")[0] for argument in arguments)
        if argument.startswith("--") and f'"{argument}"' not in text and argument != "--help"
    ]


def _check_pytest(arguments: list[str]) -> list[str]:
    own = (ROOT / "tests/conftest.py").read_text()
    problems = []
    for argument in arguments:
        path, _, test = argument.partition("::")
        if argument.startswith("--"):
            if f'"{argument.partition("=")[0]}"' not in own:
                problems.append(f"tests/conftest.py has no option {argument}")
        elif "/" in argument:
            if not (ROOT / path).exists():
                problems.append(f"there is no {path}")
            elif test and f"def {test.partition('[')[0]}(" not in (ROOT / path).read_text():
                problems.append(f"{path} has no {test}")
    return problems


# --- JSON on a command line ---


def _check_json(arguments: list[str]) -> list[str]:
    problems = []
    for option, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.startswith("{") or argument.startswith("{{"):
            continue
        try:
            values = json.loads(argument)
        except ValueError as error:
            problems.append(f"{option}: {error}")
            continue
        if option in _EXTRA_CONFIGS:
            try:
                _EXTRA_CONFIGS[option](values)
            except Exception as error:  # whatever the integration says of a wrong key
                problems.append(f"{option}: {error}")
    return problems


def options_of(engine: str) -> Any:
    """The class of an integration's options."""
    from kvstore.integrations.lmcache import options as of_lmcache
    from kvstore.integrations.sglang import options as of_sglang
    from kvstore.integrations.vllm import options as of_vllm

    classes = {"lmcache": of_lmcache.Options, "vllm": of_vllm.Options, "sglang": of_sglang.Options}
    return classes[engine]


def _kv_transfer_config(values: dict[str, Any]) -> None:
    if values["kv_connector"] == "KVStoreConnector":
        options_of("vllm").of(values["kv_connector_extra_config"])
        _class_of(values["kv_connector_module_path"], values["kv_connector"])


def _hicache_config(values: dict[str, Any]) -> None:
    options_of("sglang").of(values)
    _class_of(values["module_path"], values["class_name"])


def _class_of(module: str, name: str) -> None:
    """The module is there and names the class; its engine is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or name not in Path(found.origin).read_text():
        raise ValueError(f"{module} has no {name}")


_EXTRA_CONFIGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "--kv-transfer-config": _kv_transfer_config,
    "--hicache-storage-backend-extra-config": _hicache_config,
}
