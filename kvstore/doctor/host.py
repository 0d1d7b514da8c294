"""Host: where the checks of a machine look. Every place and limit is a field."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvstore.config import CommonConfig, MasterConfig, NodeConfig
from kvstore.doctor.clock_state import ClockState, read_clock
from kvstore.doctor.programs import Answer, ask, ask_library
from kvstore.topology import sysfs
from kvstore.topology.host import Topology, read

_DEFAULT_PORTS = {"master's port": 50051, "master's grpc_port": 50052, "master's http_port": 9080}


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine, as the checks see it."""

    sys: Path = sysfs.SYS
    proc: Path = sysfs.PROC
    dev: Path = Path("/dev")
    config: CommonConfig | None = None
    """Of the server that runs here, or will."""
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    """Soft and hard limit of a resource."""
    file_system: Callable[[Path], os.statvfs_result] = os.statvfs
    clock: Callable[[Path], ClockState] = read_clock
    ucx_library: str = ""
    """As KVSTORE_UCX_LIB names it; empty: not named."""
    site_packages: tuple[Path, ...] = ()
    """Where wheels are installed."""
    ask_library: Callable[[str, str], Answer] = ask_library
    """Loads a library in a process of its own."""
    run_program: Callable[[Sequence[str], float], Answer] = ask
    """Runs a program that prints JSON."""
    root: Path = Path("/")
    """Below which folders are that libraries have fixed names for."""

    @cached_property
    def topology(self) -> Topology:
        """NICs, GPUs and NUMA nodes."""
        return read(self.sys)

    @property
    def node(self) -> NodeConfig | None:
        """The configuration, if it is a node's."""
        return self.config if isinstance(self.config, NodeConfig) else None

    def ports(self) -> dict[str, int]:
        """The ports of the servers here: those configured, else the master's defaults."""
        config = self.config
        if isinstance(config, MasterConfig):
            ports = {"port": config.port, "grpc_port": config.grpc_port}
            ports["http_port"] = config.http_port
        elif isinstance(config, NodeConfig):
            ports = {"port": config.port, "http_port": config.http_port}
        else:
            return _DEFAULT_PORTS
        return {name: port for name, port in ports.items() if port}
