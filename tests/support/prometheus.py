"""Prometheus itself, as Debian packages it: `make promtool` unpacks it into build/prometheus."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import ROOT
from tests.support.processes import wait_for

RULES = ROOT / "deploy/monitoring/rules.yml"
_UNPACKED = ROOT / "build/prometheus/usr/bin"


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; skip the test where there is none."""
    unpacked = _UNPACKED / name
    found = str(unpacked) if unpacked.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (`make promtool` gets it on Debian)")
    return str(Path(found))


def promtool() -> str:
    return program("promtool")


class Prometheus:
    """A server that scrapes once a second, with the rules of deploy/monitoring."""

    def __init__(self, folder: Path, ports_by_job: Mapping[str, Sequence[int]]) -> None:
        self._log = folder / "prometheus.log"
        config = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {
                    "job_name": job,
                    "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
                }
                for job, ports in ports_by_job.items()
            ],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML, too
        self._port = _free_port()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._targets = sum(map(len, ports_by_job.values()))

    def wait_scraping(self) -> None:
        """Wait until every target has been scraped."""
        wait_for(
            lambda: len(self.query("up == 1")) == self._targets,
            f"every target to be scraped\n{self._log.read_text()}",
            60,
            poll_s=0.2,
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; [] while the server starts."""
        return self._ask("query", query=expression)

    def query_range(
        self, expression: str, start: float, end: float, step_s: float = 1.0
    ) -> list[dict[str, Any]]:
        """Evaluate an expression at every step."""
        return self._ask("query_range", query=expression, start=start, end=end, step=step_s)

    def _ask(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        assert self._process.poll() is None, self._log.read_text()
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return []
            raise AssertionError(f"{parameters['query']}: {error.read().decode()}") from error
        except urllib.error.URLError:
            return []
        return result

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    """Prometheus does not say which port it was given, so it is given one that was free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
