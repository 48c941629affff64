"""Certificates and CURVE keys for tests, made on the spot: an authority, a farm and its students."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
import zmq

from teacherfarm.protos.curve_keys import CurvePair, write_pair


class Authority:
    """Signs certificates and keeps them in ``folder``. ``ca``: its own certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *identities: str, days: float = 90.0) -> tuple[Path, Path]:
        """Files of a certificate for host names or addresses, and of its key. ``days`` below 0: it has ended."""
        ends = datetime.now(UTC) + timedelta(days=days)
        begins = ends - timedelta(days=abs(days) + 30)
        issued = self._authority.issue_cert(*identities, not_before=begins, not_after=ends)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key.pem"
        cert.write_bytes(b"".join(link.bytes() for link in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return cert, key


class TlsFarm:
    """What a farm at ``host`` needs for TLS, and a student for mutual TLS."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", *, days: float = 90.0) -> None:
        self.authority = Authority(folder)
        self.ca = self.authority.ca
        self.cert, self.key = self.authority.issue("farm", host, days=days)
        self.student_cert, self.student_key = self.authority.issue("student", "student.example")

    @property
    def flags(self) -> list[str]:
        """Of ``teacherfarm serve``."""
        return [f"--tls-cert={self.cert}", f"--tls-key={self.key}"]

    @property
    def mutual_flags(self) -> list[str]:
        """The same, for a farm that asks students for certificates."""
        return [*self.flags, f"--tls-client-ca={self.ca}"]

    def options(self, *, mutual: bool = False) -> str:
        """What a student's address takes after its port."""
        own = f"&cert={self.student_cert}&key={self.student_key}" if mutual else ""
        return f"?ca={self.ca}{own}"


class CurveFarm:
    """What a farm needs for CURVE: a key pair, and a folder with the public files of ``students``."""

    def __init__(self, folder: Path, *students: str) -> None:
        self._folder = folder
        self.public_key, self.secret_file = self._make(folder / "farm", "farm")
        self.clients = folder / "clients"
        self.clients.mkdir()
        self.students = {name: self.add(name) for name in students}

    @property
    def flags(self) -> list[str]:
        """Of ``teacherfarm serve``."""
        return [f"--curve-key={self.secret_file}", f"--curve-clients={self.clients}"]

    def add(self, student: str) -> Path:
        """Put a new student on the allow-list; its secret file."""
        secret_file = self.stranger(student)
        (self.clients / f"{student}.public").write_text(secret_file.with_suffix(".public").read_text())
        return secret_file

    def stranger(self, name: str) -> Path:
        """The secret file of somebody who is on no list."""
        return self._make(self._folder / name, name)[1]

    def options(self, student: str) -> str:
        """What a student's address takes after its port."""
        return f"?server_key={self.public_key}&client_key={self.students[student]}"

    def _make(self, folder: Path, name: str) -> tuple[str, Path]:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        return public, write_pair(folder, name, CurvePair(public=public, secret=secret))[1]
