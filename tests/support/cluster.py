"""A real cluster on this machine: one master and nodes as processes, ports chosen by the kernel."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kvstore
from tests.support.processes import Daemon, wait_for
from tests.support.transports import client_options, moved, node_config, report_traffic

SHM = Path("/dev/shm")


class Cluster:
    """Starts processes on request and stops all of them in `close`."""

    def __init__(
        self,
        folder: Path,
        master_options: list[str] | None = None,
        operator_token_file: str | None = None,
        host: str = "127.0.0.1",
        transport: str = "auto",
    ) -> None:
        self.folder = folder
        self.transport = transport
        """What `start_node` makes nodes offer, beside what every node does."""
        self.host = host
        self._operator_options = (
            ["--token-file", operator_token_file] if operator_token_file else []
        )
        self.run_id = secrets.token_hex(4)
        self.master_options = master_options or []
        self.nodes: dict[str, Daemon] = {}
        self.segment_dirs: dict[str, Path] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.expected_errors: list[str] = []
        """Events that may be logged as ERROR."""
        self._stores: list[kvstore.Store] = []
        self._by_ucx: list[kvstore.Store] = []
        self._port = 0
        self.master = self._start_master()
        self.address = f"{host}:{self.master.ports['port']}"

    def _start_master(self) -> Daemon:
        arguments = ["-m", "kvstore.cli.master", "--data-dir", str(self.folder / "master")]
        arguments += ["--host", self.host]
        arguments += ["--port", str(self._port), "--grpc-port", "0", "--http-port", "0"]
        master = Daemon("master", arguments + self.master_options, self.folder)
        try:
            master.wait_started()
        except BaseException:
            master.kill()
            raise
        self._port = int(master.ports["port"])
        return master

    def restart_master(self) -> None:
        """Restart the stopped master on the same port and data folder."""
        self.master = self._start_master()

    def start_node(
        self,
        node_id: str,
        wait: bool = True,
        package: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **config: Any,
    ) -> Daemon:
        """Start a node.

        `config` overrides keys of its config.json; `package` is the folder of another installation;
        `environment` is added to this process's.
        """
        self.configs[node_id] = config
        segment_dir = self.segment_dirs.setdefault(
            node_id, SHM / f"kvstore-test-{self.run_id}-{node_id}"
        )
        values = {
            "master_address": self.address,
            "node_id": node_id,
            "segment_size": "64mb",
            "segment_dir": str(segment_dir),
            "http_port": 0,
            "labels": {"host": node_id},
            **node_config(self.transport),
        }
        values.update(config)
        path = self.folder / f"{node_id}.json"
        path.write_text(json.dumps(values))
        arguments = ["-m", "kvstore.cli.node", "--config", str(path)]
        node = Daemon(node_id, arguments, self.folder, package, environment)
        self.nodes[node_id] = node
        if wait:
            node.wait_started()
            self.wait_state(node_id, "alive")
            if self.transport == "ucx":
                wait_for(lambda: _is_registered(node), "its memory to be registered", 60)
        return node

    def connect(self, **options: Any) -> kvstore.Store:
        """Connect a client, closed with the cluster."""
        given = {**client_options(options.get("transport", "auto")), **options}
        store = kvstore.connect(self.address, **given)
        self._stores.append(store)
        if given["transport"] == self.transport == "ucx":
            self._by_ucx.append(store)
        return store

    def run_cli(self, *arguments: str) -> Any:
        """Run the operator's tool with --json in this process; click's Result."""
        from click.testing import CliRunner

        from kvstore.cli.operator import main

        options = ["--master", self.address, "--json", *self._operator_options]
        return CliRunner().invoke(main, [*arguments, *options])

    def cli(self, *arguments: str) -> Any:
        """Run the operator's tool as `run_cli`, without an error; what it printed."""
        result = self.run_cli(*arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
        return json.loads(result.stdout)

    def node_states(self) -> dict[str, str]:
        return {node["node_id"]: node["state"] for node in self.cli("nodes")}

    def wait_state(self, node_id: str, state: str, timeout_s: float = 20.0) -> None:
        wait_for(
            lambda: self.node_states().get(node_id) == state,
            f"node {node_id} to be {state}\n{self.logs()}",
            timeout_s,
            poll_s=0.05,
        )

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """Stop every process, remove every file, and fail on an unexpected ERROR line."""
        by_ucx = [moved(store) for store in self._by_ucx]
        for store in self._stores:
            store.close()
        daemons = [*self.nodes.values(), self.master]
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.signal(signal.SIGCONT)
                daemon.process.terminate()
        try:
            for daemon in daemons:
                daemon.terminate()
        finally:
            for daemon in daemons:
                daemon.kill()
            for folder in self.segment_dirs.values():
                shutil.rmtree(folder, ignore_errors=True)
        errors = [
            line
            for line in self.logs().splitlines()
            if " ERROR " in line and not any(name in line for name in self.expected_errors)
        ]
        assert not errors, "\n".join(errors)
        report_traffic(by_ucx)
        for one in by_ucx:
            assert one["bytes_ucx"] + one["put_bytes_ucx"] > 0 or not any(one.values()), one


def _is_registered(node: Daemon) -> bool:
    """Whether UCX reaches all of a node's memory."""
    from tests.support.control import metric  # gRPC, which embedded tests do without

    return metric(node, "kvstore_ucx_registered_bytes") == metric(node, "kvstore_ready_bytes") > 0
