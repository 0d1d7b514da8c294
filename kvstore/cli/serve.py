"""Shared by the two server commands: options, signals, the port file, the ready line."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

import kvstore
from kvstore.errors import IoError
from kvstore.logging import FORMATS, LEVELS, EventLogger, Recurring
from kvstore.reload import Reloader
from kvstore.tasks import BackgroundTasks

_log = EventLogger("process")

F = TypeVar("F", bound=Callable[..., Any])
Announce = Callable[[dict[str, Any]], None]
Serve = Callable[[asyncio.Event, Announce], Coroutine[Any, Any, None]]


_MOST_DESCRIPTORS = 1 << 20
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def version_option(program: str) -> Callable[[F], F]:
    """Add --version."""
    return click.version_option(kvstore.__version__, prog_name=program)


def server_options(command: F) -> F:
    """Add the options that master and node share."""
    options = [
        click.option("--config", "config_file", type=click.Path(), help="Read this JSON file."),
        click.option("--host", help="Address to listen on."),
        click.option("--port", type=int, help="Block port; 0 for any."),
        click.option("--http-port", type=int, help="Port of metrics and health; 0 for any."),
        click.option("--advertise-host", help="Host announced to others."),
        click.option("--auth-token-file", type=click.Path(), help="File of principals."),
        click.option("--port-file", type=click.Path(), help="Write the bound ports to this file."),
        click.option("--log-level", type=click.Choice(LEVELS), help="Least level to log."),
        click.option("--log-format", type=click.Choice(FORMATS), help="Lines of the log."),
        click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run(
    program: str,
    serve: Serve,
    reloader: Reloader[Any],
    tasks: BackgroundTasks,
    port_file: str,
    as_json: bool,
) -> None:
    """Run a server until SIGTERM or SIGINT.

    Args:
        program: its name.
        serve: runs until the event is set; calls the announcer with its addresses.
        reloader: reads the configuration again on SIGHUP and when a file has changed.
        tasks: those of the server, to which the reloader's is added.
        port_file: written when it serves, removed at exit; empty for none.
        as_json: how to print the ready line.
    """

    def announce(where: dict[str, Any]) -> None:
        where = {"pid": os.getpid(), **where}
        if port_file:
            _write(Path(port_file), json.dumps(where) + "\n")
        fields = " ".join(f"{name}={value}" for name, value in where.items())
        click.echo(json.dumps(where) if as_json else f"{program} ready {fields}")

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_loop_errors())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reloader.reload, "sighup")
        watch = tasks.start("config", reloader.watch())
        try:
            await serve(stop, announce)
        finally:
            watch.cancel()
        _log.info("stopped")

    _raise_descriptor_limit()
    try:
        asyncio.run(main())
    finally:
        if port_file:
            Path(port_file).unlink(missing_ok=True)


def end_process(code: int = 0) -> NoReturn:
    """End this process, without the interpreter's teardown.

    Taking thousands of modules apart serves nobody, and costs a node a tenth of its outage in a
    restart.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the process may have; many systems start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _loop_errors() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Make a handler of errors in the event loop.

    asyncio logs a traceback for every accept() that finds no descriptor, hundreds a second.
    """
    scarce = Recurring(_log, "out_of_descriptors")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _SCARCE:
            scarce.warn(error=error, what=context.get("message"))
        else:
            loop.default_exception_handler(context)

    return handle


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise IoError(f"port file {path}: {error.strerror}") from error
