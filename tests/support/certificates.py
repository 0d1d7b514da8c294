"""Certificates for tests, made by the openssl command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_HERE = "IP:127.0.0.1,DNS:localhost"


def _openssl(*arguments: str | Path) -> None:
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"


class Authority:
    """An authority, and the certificates that it has signed, in one folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.ca = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        subject = ("-days", "2", "-subj", f"/CN={name}")
        extension = ("-addext", "basicConstraints=critical,CA:TRUE")
        _openssl("req", "-x509", *_EC, *subject, "-keyout", self._key, "-out", self.ca, *extension)

    def sign(self, name: str, alternatives: str = _HERE, days: int = 2) -> tuple[Path, Path]:
        """Make a certificate and its key, replacing older ones of this name as an operator would.

        Args:
            name: of the subject, and of the files.
            alternatives: the names it is valid for.
            days: until it expires; -1: it has.
        """
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        new_cert, new_key, asked = (self.folder / f"{name}.{kind}" for kind in ("c", "k", "csr"))
        _openssl("req", *_EC, "-subj", f"/CN={name}", "-keyout", new_key, "-out", asked)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n")
        signer = ("-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", str(days))
        _openssl("x509", "-req", "-in", asked, *signer, "-extfile", extensions, "-out", new_cert)
        os.replace(new_key, key)
        os.replace(new_cert, cert)
        return cert, key

    def config(self, name: str, alternatives: str = _HERE, **more: Any) -> dict[str, Any]:
        """Sign a certificate; return the key `tls` of a configuration with it."""
        cert, key = self.sign(name, alternatives)
        return {"cert": str(cert), "key": str(key), "ca": str(self.ca), **more}

    def client(self, name: str = "") -> dict[str, Any]:
        """Return the arguments of kvstore.connect, with a certificate if there is a name."""
        found: dict[str, Any] = {"tls_ca": str(self.ca)}
        if name:
            cert, key = self.sign(name, f"DNS:{name}")
            found |= {"tls_cert": str(cert), "tls_key": str(key)}
        return found


def s_client(port: int, *options: str) -> tuple[bool, str]:
    """Shake hands as `openssl s_client` does: whether that worked, and all that it said."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20,
        check=False,
    )
    return done.returncode == 0, done.stdout.decode(errors="replace")
