"""What TLS costs: the same cluster over TCP, plain and with TLS 1.3 in user space."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

from bench.contenders import kvstore
from bench.parts import Run
from bench.report import Section
from bench.rounds import run_shape
from bench.sample import Spread, rate_ratio
from bench.shapes import KIB, MIB, Shape

_SHAPES = ((4 * KIB, 128), (64 * KIB, 128), (MIB, 1), (MIB, 64))
_OPERATIONS = ("get", "put_from")


def _certificate(folder: Path) -> dict[str, str]:
    """Make one that is its own authority, with ECDSA P-256."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    name = ["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *kind, *name, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return {"cert": str(cert), "key": str(key), "ca": str(cert)}


def measure(run: Run) -> None:
    rows, raw = [], []
    working_set = run.plan.working_set
    size = kvstore.segment_bytes(working_set, clients=1)
    with ExitStack() as stack:
        folders = [run.folder / name for name in ("plain", "tls")]
        for folder in folders:
            folder.mkdir()
        plain = kvstore.Cluster(stack, folders[0], size)
        tls = kvstore.Cluster(stack, folders[1], size, tls=_certificate(run.folder))
        contenders = [
            plain.contender("plain", working_set, "tcp"),
            tls.contender("tls", working_set, "tcp"),
        ]
        for object_size, batch in _SHAPES:
            shape = Shape.of(object_size, batch, working_set)
            table = run_shape(contenders, shape, run.plan)
            for operation in _OPERATIONS:
                both = [table.get(name, operation) or [] for name in ("tls", "plain")]
                rates = [str(Spread.of([sample.gbps for sample in samples])) for samples in both]
                ratio = str(rate_ratio(both[0], both[1]))
                rows.append([str(shape), operation, *rates, ratio])
            raw.append({"shape": shape, "table": table})
    columns = ["size x batch", "operation", "TLS GB/s", "plain GB/s", "TLS / plain"]
    notes = ["TLS_AES_128_GCM_SHA256 by the system's OpenSSL; both clusters over loopback."]
    run.results.sections.append(Section("TCP with TLS and without", columns, rows, notes, raw))
