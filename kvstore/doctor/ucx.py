"""Checks of UCX: which library would be used, its version, and its transports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvstore import ucx
from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host
from kvstore.topology import sysfs

_LIBRARY = re.compile(r"libucp(-[0-9a-f]+)?\.so(\.[0-9]+)*")
_VERBS = re.compile(r"libibverbs(-[0-9a-f]+)?\.so(\.[0-9]+)*")
_MODULE = re.compile(r"libuct_([a-z0-9_]+)\.so(\.[0-9]+)*")
_OLDEST = (1, 13)  # the oldest that is tested
_MAX_LIBRARY_BYTES = 8 << 20
_INSTALL = "apt-get install libucx0 ibverbs-providers, or the UCX of NVIDIA's DOCA"


@dataclass(frozen=True)
class Candidate:
    """A UCX library that may be used."""

    source: str
    library: str


def candidates(host: Host) -> list[Candidate]:
    """List the libraries in the order in which they are tried."""
    found = []
    if host.ucx_library:
        found.append(Candidate(ucx.LIBRARY_VARIABLE, host.ucx_library))
    found.append(Candidate("the system", ucx.SYSTEM))
    for base in host.site_packages:
        for folder in ucx.WHEELS:
            names = [n for n in sysfs.names(base / folder) if _LIBRARY.fullmatch(n)]
            wheel = folder.strip(".").removesuffix(".libs").replace("_", "-")
            found += [Candidate(f"the {wheel} wheel", str(base / folder / n)) for n in names[:1]]
    return found


def library(host: Host) -> Iterator[Finding]:
    """UCX: KVSTORE_UCX_LIB, else the system's, else that of a nixl-cu12 or nixl-cu13 wheel."""
    needed = bool(host.topology.nics)
    for candidate in candidates(host):
        answer = host.ask_library("ucx", candidate.library)
        if not answer.error:
            yield from _describe(host, candidate, answer.values)
            yield from _wheel_without_verbs(host, candidate)
            return
        if candidate.source == "KVSTORE_UCX_LIB":
            yield fail(
                f"KVSTORE_UCX_LIB {candidate.library}: {answer.error}",
                "let it name libucp.so.0 of a UCX installation, or unset it",
            )
            return
        if "No such file" not in answer.error:
            yield warn(f"UCX of {candidate.source} does not load: {answer.error}", _INSTALL)
    yield from _wheel_without_verbs(host, None)
    if needed:
        yield warn("there is no UCX: the RDMA NICs are not used", _INSTALL)
    else:
        yield ok("there is no UCX; without RDMA nothing needs it")


def _describe(host: Host, candidate: Candidate, values: dict[str, object]) -> Iterator[Finding]:
    numbers = values.get("version")
    version = tuple(n for n in numbers if isinstance(n, int)) if isinstance(numbers, list) else ()
    said = f"UCX {'.'.join(map(str, version))} of {candidate.source} ({values.get('path')})"
    if version[:2] < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        yield warn(f"{said} is older than {wanted}, the oldest that is tested", _INSTALL)
    else:
        yield ok(said)
    folder = Path(str(values.get("ucs_path") or values.get("path"))).parent / "ucx"
    modules = {m[1] for n in sysfs.names(folder) if (m := _MODULE.fullmatch(n))}
    if "ib" in modules:
        yield ok(f"its transports in {folder}: {', '.join(sorted(modules))}")
        yield from _providers(host, folder.parent)
    else:
        words = f"its transports in {folder} ({', '.join(sorted(modules)) or 'none'}) have no verbs"
        finding = warn if host.topology.nics else lambda text, fix: ok(text)
        yield finding(f"{words}: RDMA does not work with it", _INSTALL)
    if host.topology.gpus and "cuda" not in modules:
        yield warn(
            f"UCX of {candidate.source} has no CUDA module: tensors pass through host memory",
            "apt-get install libucx-cuda, or the UCX of NVIDIA's DOCA",
        )


def _providers(host: Host, libraries: Path) -> Iterator[Finding]:
    """A wheel's own libibverbs looks for providers in one folder, fixed when it was built."""
    own = [name for name in sysfs.names(libraries) if _VERBS.fullmatch(name)]
    if not own or not libraries.name.endswith(".libs"):
        return
    try:
        with (libraries / own[0]).open("rb") as file:
            contents = file.read(_MAX_LIBRARY_BYTES)
    except OSError:
        return
    built = re.search(rb"(/[\x21-\x7e]{1,200})/lib%s(-rdmav[0-9]+\.so)", contents)
    if built is None:
        return
    folder, suffix = built[1].decode(), built[2].decode()
    there = [n for n in sysfs.names(host.root / folder.lstrip("/")) if n.endswith(suffix)]
    said = f"the wheel's libibverbs looks for providers only in {folder} (lib*{suffix})"
    if there:
        yield ok(f"{said}, and finds {len(there)}")
    elif host.topology.nics:
        yield warn(
            f"{said}, where there are none: its UCX sees no RDMA NIC",
            f"the system's UCX (apt-get install libucx0), or a link {folder} to the folder of the "
            f"system's providers, if they are *{suffix}",
        )
    else:
        yield ok(f"{said}; none are there, and no NIC needs one")


def _wheel_without_verbs(host: Host, used: Candidate | None) -> Iterator[Finding]:
    """The libucx-cu12 wheel is UCX without verbs: its presence misleads."""
    for base in host.site_packages:
        if not (base / "libucx" / "lib").is_dir():
            continue
        chosen = used is not None and used.library.startswith(str(base / "libucx"))
        if chosen:
            yield fail(
                "KVSTORE_UCX_LIB names the libucx wheel, which is built without verbs: useless "
                "for RDMA",
                f"unset KVSTORE_UCX_LIB, and {_INSTALL}",
            )
        else:
            yield ok("the libucx wheel is installed; it has no verbs and is not used")
