"""The commands without a cluster: help, versions, completion, configuration files, formats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kvstore import __version__
from kvstore.cli import master, node, operator
from kvstore.cli.data import MISSES
from kvstore.cli.output import (
    Exit,
    exit_of,
    format_duration,
    print_fields,
    print_json,
    print_table,
)
from kvstore.config import MasterConfig, NodeConfig, load
from kvstore.errors import MissReason, Status
from kvstore.text import printable

PROGRAMS: dict[str, click.Command] = {
    "kvstore": operator.main,
    "kvstore-master": master.main,
    "kvstore-node": node.main,
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(operator.main, arguments)


def commands() -> list[tuple[str, click.Command]]:
    found = []
    context = click.Context(operator.main, **operator.main.context_settings)
    for name in operator.COMMANDS:
        command = operator.main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", one) for sub, one in command.commands.items()]
        else:
            found.append((name, command))
    return found


# --- help, versions, errors ---


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_has_short_help_and_a_version(program: str) -> None:
    short, long = (CliRunner().invoke(PROGRAMS[program], [o]) for o in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output and "Example" in short.output
    version = CliRunner().invoke(PROGRAMS[program], ["--version"])
    assert version.output == f"{program}, version {__version__}\n"


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda one: str(one))
def test_every_command_has_short_help_and_an_example(name: str, command: click.Command) -> None:
    ran = run(*name.split(), "-h")
    assert ran.exit_code == 0 and command.epilog, name
    assert f"kvstore {name}" in command.epilog


def test_a_misspelt_command_is_named() -> None:
    ran = run("namespace")
    assert ran.exit_code == Exit.USAGE and "'namespaces'" in ran.output
    assert run("xyzzy").exit_code == Exit.USAGE


def test_statuses_have_exit_codes() -> None:
    assert exit_of(Status.Ok) is exit_of(Status.AlreadyExists) is Exit.OK
    assert exit_of(Status.NotFound) is Exit.MISS
    late = (Status.Unavailable, Status.DeadlineExceeded, Status.Rebuilding, Status.Overloaded)
    assert {exit_of(status) for status in late} == {Exit.UNAVAILABLE}
    failed = (Status.NoSpace, Status.TooLarge, Status.Partial, Status.Removed)
    assert {exit_of(status) for status in failed} == {Exit.FAILED}


def test_every_miss_has_words_and_an_exit_code() -> None:
    assert set(MISSES) == set(MissReason) - {MissReason.None_}
    assert all(code is not Exit.OK and words for code, words in MISSES.values())


def test_the_list_of_commands_says_what_their_help_says() -> None:
    context = click.Context(operator.main)
    for name, entry in operator.COMMANDS.items():
        command = operator.main.get_command(context, name)
        assert command is not None and command.get_short_help_str(1000) == entry.help


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys; from kvstore.cli.operator import COMMANDS, main\n"
        "try: main(['--help'])\n"
        "finally: print('loaded', [m for m in sys.modules if m.startswith('kvstore.cli.')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name}" in shown.stdout for name in operator.COMMANDS)
    assert "loaded ['kvstore.cli.operator']" in shown.stdout


# --- completion ---


def complete(words: str, shell: str = "bash") -> list[str]:
    """Ask the program as a shell does."""
    variables = {
        "_KVSTORE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ran = CliRunner().invoke(operator.main, [], prog_name="kvstore", env=variables)
    return sorted(line.partition(",")[2] for line in ran.output.splitlines())


def test_commands_options_and_choices_are_completed() -> None:
    assert complete("kvstore na") == ["namespaces"]
    assert complete("kvstore put k --re") == ["--replicas"]
    assert complete("kvstore put k --pin ") == ["hard", "soft"]
    assert complete("kvstore config ") == ["check", "init", "migrate", "show"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_completion_script_is_printed(shell: str, program: str) -> None:
    ran = run("completion", shell, "--program", program)
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE={shell}_complete"
    assert ran.exit_code == 0 and variable in ran.output and program in ran.output


# --- configuration files ---


def written(path: Path, values: object) -> str:
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize(("kind", "key"), [("node", "segment_size"), ("master", "data_dir")])
def test_a_configuration_is_started_checked_and_shown(tmp_path: Path, kind: str, key: str) -> None:
    file = tmp_path / "config.json"
    assert run("config", "init", kind, "--output", str(file)).exit_code == 0
    again = run("config", "init", kind, "--output", str(file))
    assert again.exit_code == Exit.USAGE and "exists" in again.output
    checked = run("config", "check", str(file), "--json")
    assert checked.exit_code == 0
    assert {**json.loads(checked.output), "remarks": []} == {
        "discovery": None,
        "valid": True,
        "kind": kind,
        "error": None,
        "remarks": [],
    }
    kind_class = NodeConfig if kind == "node" else MasterConfig
    shown = json.loads(run("config", "show", str(file), "--json").output)
    assert shown.keys() == set(kind_class.__struct_fields__)
    assert load(kind_class, None, shown) == load(kind_class, file, {})
    changed = json.loads(run("config", "show", str(file), "--json", "--changed").output)
    assert changed.keys() < shown.keys()
    assert key in run("config", "show", str(file)).output
    every = run("config", "init", kind, "--all")
    assert load(kind_class, None, json.loads(every.output)) == load(kind_class, None, {})


def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"segment_sise": "1gb", "node_id": "a"})
    ran = run("config", "check", file)
    assert ran.exit_code == Exit.USAGE and "'segment_size'" in ran.output
    answer = json.loads(run("config", "check", file, "--json").output)
    assert not answer["valid"] and "segment_size" in answer["error"] and answer["kind"] == "node"
    file = written(tmp_path / "m.json", {"node_ttl_ms": 1, "heartbeat_ms": 1000})
    assert run("config", "check", file).exit_code == Exit.USAGE
    assert run("config", "check", file, "--kind", "node").exit_code == Exit.USAGE
    assert run("config", "check", str(tmp_path / "none.json")).exit_code == Exit.USAGE
    assert run("config", "show", written(tmp_path / "l.json", [1])).exit_code == Exit.USAGE


def test_what_is_missing_on_this_machine_is_a_remark(tmp_path: Path) -> None:
    values = {
        "host": "0.0.0.0",
        "segment_dir": str(tmp_path / "no" / "segment"),
        "nvme_dir": str(tmp_path / "no" / "nvme"),
        "nvme_size": "1gb",
    }
    file = written(tmp_path / "c.json", values)
    ran = run("config", "check", file, "--json")
    assert ran.exit_code == 0
    assert [one.partition(":")[0].split()[0] for one in json.loads(ran.output)["remarks"]] == [
        "host",
        "segment_dir",
        "nvme_dir",
    ]
    file = written(tmp_path / "t.json", {"auth_token_file": str(tmp_path / "token")})
    ran = run("config", "check", file, "--kind", "master")
    assert ran.exit_code == 0 and "token" in ran.output


# --- formats ---


def test_text_is_made_printable() -> None:
    assert printable("plain\\path é 日本") == "plain\\path é 日本"
    assert printable("a\x1b[2J\n\x9b\\") == "a\\x1b[2J\\n\\x9b\\\\"
    assert printable("\u202e") == "\\u202e"


def test_json_never_writes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"k\x9b\u202e\x1b\n": "🦊 é"}
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value and out.strip().isprintable() and "🦊 é" in out


def test_wide_characters_keep_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["key", "size"], [["日本", 1000], ["x", 5]])
    assert capsys.readouterr().out == "key    size\n日本  1,000\nx         5\n"
    print_table(["key", "n"], [])
    assert capsys.readouterr().out == "key  n\n"


def test_fields_are_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"a": True, "long name": [], "c": ["x", "y\n"], "d": None, "e": 0, "f": ""})
    assert capsys.readouterr().out.splitlines() == [
        "a          yes",
        "long name  -",
        "c          x, y\\n",
        "d          -",
        "e          0",
        "f          -",
    ]


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (61_000, "1 min 1 s"),
        (3_600_000, "1 h"),
        (3_601_000, "1 h"),
        (90_061_000, "1 d 1 h"),
    ],
)
def test_durations_are_short(ms: int, text: str) -> None:
    assert format_duration(ms) == text
