"""The certificate and key with which the gRPC front-end says who it is, and whose students it believes.

Files are checked when they are read, in words; read again, they serve every handshake from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

log = logging.getLogger(__name__)

SOON = timedelta(days=14)
"""A certificate that ends within this time is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class _Material:
    certificates_pem: bytes
    key_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None


class ServerTls:
    """TLS with ``cert`` and ``key``; mutual TLS where ``client_ca`` is not empty: a student then needs a certificate of
    one of these authorities. Raises ValueError naming the file that cannot be used, when made and at :meth:`reload`.
    """

    def __init__(
        self, *, cert: str, key: str, client_ca: str = "", now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._cert, self._key, self._client_ca = Path(cert), Path(key), client_ca
        self._now = now
        self._material = self._read()

    def __repr__(self) -> str:
        return f"<ServerTls {self._cert}{', mutual' if self._client_ca else ''}, until {self.expires:%Y-%m-%d}>"

    @property
    def mutual(self) -> bool:
        """Whether students need certificates."""
        return bool(self._client_ca)

    def reload(self) -> None:
        """Read the files again. Where they cannot be used, the former ones stay in use and ValueError says why."""
        self._material = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """What a gRPC port takes."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._configuration, require_client_authentication=self.mutual
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        material = self._material
        return grpc.ssl_server_certificate_configuration(
            [(material.key_pem, material.certificates_pem)], root_certificates=material.client_ca_pem
        )

    def _read(self) -> _Material:
        certificates_pem, key_pem = _bytes(self._cert, "tls_cert"), _bytes(self._key, "tls_key")
        [certificate, *_] = _certificates(certificates_pem, self._cert, "tls_cert")
        _check_dates(certificate, self._cert, "tls_cert", self._now())
        _check_key(certificate, key_pem, self._cert, self._key)
        client_ca_pem = None
        if self._client_ca:
            client_ca_pem = _bytes(Path(self._client_ca), "tls_client_ca")
            for authority in _certificates(client_ca_pem, Path(self._client_ca), "tls_client_ca"):
                _check_dates(authority, Path(self._client_ca), "tls_client_ca", self._now())
        self.expires = certificate.not_valid_after_utc
        """When the certificate ends."""
        return _Material(certificates_pem=certificates_pem, key_pem=key_pem, client_ca_pem=client_ca_pem)


def _bytes(file: Path, setting: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{setting}: cannot read {file}: {error.strerror}") from error


def _certificates(pem: bytes, file: Path, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"{setting}: {file} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error


def _check_dates(certificate: x509.Certificate, file: Path, setting: str, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise ValueError(
            f"{setting}: the certificate in {file} expired on {ends:%Y-%m-%d %H:%M} UTC: every peer will refuse it. "
            "Renew it; SIGHUP makes a running server read it again"
        )
    if now < begins:
        raise ValueError(
            f"{setting}: the certificate in {file} is not valid before {begins:%Y-%m-%d %H:%M} UTC, and it is "
            f"{now:%Y-%m-%d %H:%M} here: is this machine's clock right?"
        )
    if ends - now < SOON:
        log.warning("%s: the certificate in %s expires on %s UTC", setting, file, f"{ends:%Y-%m-%d %H:%M}")


def _check_key(certificate: x509.Certificate, key_pem: bytes, cert: Path, key: Path) -> None:
    try:
        own = load_pem_private_key(key_pem, password=None).public_key()
    except TypeError as error:
        raise ValueError(f"tls_key: {key} is protected by a password; a server needs it without") from error
    except ValueError as error:
        raise ValueError(f"tls_key: {key} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if own.public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ValueError(
            f"tls_key: {key} is not the key of the certificate in {cert} (its first one, where several stand there)"
        )
