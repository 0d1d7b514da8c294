"""`kvstore doctor`: checks this host and the cluster, and says what to change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.output import Exit, print_json, reports_errors
from kvstore.cli.target import Target, is_given, json_option, target, target_options
from kvstore.doctor import Finding, Level, fail, ok, run, warn
from kvstore.doctor.checks import CLUSTER, HOST, MEASURE, RDMA_TRANSFERS, SUBJECTS, overview
from kvstore.doctor.host import Host
from kvstore.errors import InvalidArgumentError
from kvstore.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.config import CommonConfig

_COLORS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_EPILOG = f"""\b
Examples:
  kvstore doctor --only rdma --rdma
  kvstore doctor --config node.json --master 10.0.0.1:50051 --measure
\b
Checks:
{overview()}
\b
Exit codes: 0 nothing failed (with --strict: and no warning), 5 a check failed, 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--config",
    "config_file",
    type=click.Path(),
    help="Configuration of the kvstore-node or kvstore-master that runs here, or will.",
)
@click.option(
    "--only",
    "subjects",
    multiple=True,
    type=click.Choice(SUBJECTS),
    help="Check these subjects only; repeatable.",
)
@click.option("--rdma", is_flag=True, help="Write and read between RDMA ports; needs pyverbs.")
@click.option("--measure", is_flag=True, help="Measure bandwidth and latency of each node.")
@click.option("--strict", is_flag=True, help="Exit with 5 for warnings, too.")
@json_option
@target_options
@reports_errors
def doctor(
    config_file: str | None,
    subjects: tuple[str, ...],
    rdma: bool,
    measure: bool,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check this host and the cluster, and say how to fix what is wrong.

    Each line is ok, warn (slower or less safe than it could be) or fail (does not work). Without
    --master and --config the cluster at the default address is checked, if there is one, or in a
    group of RBG that group's. A master is found as a node finds it: by address, file or DNS.
    """
    is_named = is_given("master")
    where = target(options)
    chosen = set(subjects or SUBJECTS)
    chosen |= {subject for subject, asked in (("rdma", rdma), ("cluster", measure)) if asked}
    findings: list[Finding] = []
    with progress() as begins:

        def take(found: Iterator[Finding]) -> None:
            for finding in found:
                findings.append(finding)
                if not as_json:
                    begins("")  # the line appears in the place of the spinner
                    _show(finding)

        config, problem = _read(config_file)
        take(iter(problem))
        if not is_named:
            where, is_named, found = _find(where, config, config_file)
            take(iter(found if "cluster" in chosen else ()))
        host = host_of(config)
        for subject, checks in HOST.items():
            if subject in chosen:
                extra = (RDMA_TRANSFERS,) if subject == "rdma" and rdma else ()
                take(run((*checks, *extra), host, begins))
        if "cluster" in chosen and where.masters:
            take(_cluster(where, is_named, (MEASURE,) if measure else (), begins))
    counts = {level: sum(f.level is level for f in findings) for level in Level}
    if as_json:
        print_json(document(findings))
    else:
        click.echo(", ".join(f"{count} {level.value}" for level, count in counts.items()))
    if counts[Level.FAIL] or (strict and counts[Level.WARN]):
        sys.exit(Exit.FAILED)


def _cluster(
    where: Target, is_named: bool, extra: tuple[Any, ...], begins: Callable[[str], None]
) -> Iterator[Finding]:
    from kvstore.cli.examine import examine  # grpc is slow to load

    begins("asking the cluster")
    cluster = examine(where, is_named)
    yield from run((*CLUSTER, *extra), cluster, begins)


def _read(file: str | None) -> tuple[CommonConfig | None, list[Finding]]:
    """Read a server's configuration; one that is wrong is a finding."""
    if file is None:
        return None, []
    from kvstore.cli.config import kind_of, load_as

    try:
        kind = kind_of(file, None)
        config = load_as(file, kind)
    except InvalidArgumentError as error:
        wrong = fail(str(error), f"correct it; kvstore config check {file} says the same")
        return None, [replace(wrong, check="config")]
    return config, [replace(ok(f"{file}: of kvstore-{kind}"), check="config")]


def _find(
    where: Target, config: CommonConfig | None, file: str | None
) -> tuple[Target, bool, list[Finding]]:
    """Find the cluster as a server with this configuration would.

    Returns:
        Where it is (without masters: it cannot be found), whether somebody named it, and what is
        to be said of that.
    """
    if config is None and file is not None:
        return where, False, []
    from kvstore.config import NodeConfig
    from kvstore.discovery.look import look

    found = look(config or NodeConfig())
    if config is not None:
        where = _of_config(where, config)
    if found is None:
        return where, config is not None, []
    if found.problem:
        said = (warn if found.masters else fail)(found.problem, found.fix)
    else:
        said = ok(f"{found.by} names {', '.join(found.masters)}: {found.source}")
    return replace(where, masters=found.masters), True, [replace(said, check="discovery")]


def _of_config(where: Target, config: CommonConfig) -> Target:
    """Take the master's address, and an operator's or client's token, from a configuration."""
    from kvstore.addresses import masters_of
    from kvstore.config import NodeConfig
    from kvstore.ports import bracketed, public_host
    from kvstore.security import load_identity

    if isinstance(config, NodeConfig):
        masters = tuple(masters_of(config.addresses(), "master_address"))
    else:
        host = public_host(config.host, getattr(config, "advertise_host", ""))
        masters = (f"{bracketed(host)}:{getattr(config, 'port', 0) or 50051}",)
    token_file = where.token_file
    if token_file is None and config.auth_token_file:
        try:
            load_identity(config.auth_token_file)
            token_file = config.auth_token_file
        except InvalidArgumentError:
            pass  # it is for servers; the master will ask for a token, and a finding say so
    return replace(where, masters=masters, token_file=token_file)


def host_of(config: CommonConfig | None) -> Host:
    """Return this machine, as the checks see it."""
    from kvstore.environment import ucx_library

    packages = tuple(Path(entry) for entry in sys.path if entry.endswith("-packages"))
    return Host(config=config, ucx_library=ucx_library(), site_packages=packages)


def _show(finding: Finding) -> None:
    level = click.style(f"{finding.level.value:<5}", fg=_COLORS[finding.level])
    click.echo(f"{level} {finding.check:<10} {printable(finding.message)}")
    if finding.fix:
        click.echo(f"{'':<16} fix: {printable(finding.fix)}")


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return what `kvstore doctor --json` prints."""
    counts = {level: sum(f.level is level for f in findings) for level in Level}
    rows = [
        {"check": f.check, "level": f.level.value, "message": f.message, "fix": f.fix}
        for f in findings
    ]
    return {"findings": rows, **{level.value: count for level, count in counts.items()}}


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Show on a terminal which check runs."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    status = console.status("")

    def begins(name: str) -> None:
        if name:
            status.update(name)
            status.start()
        else:
            status.stop()

    try:
        yield begins
    finally:
        status.stop()
