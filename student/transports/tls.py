"""TLS of ``grpcs://``: the files that an address names, and a sentence for why a server and a student do not agree.

gRPC reports a failed handshake as an unreachable server, in its own words. So the handshake is tried once more, by the
standard library, which says what it found.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import grpc

from teacherfarm.student.settings import TlsFiles

PROBE_S = 5.0


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """What a gRPC channel takes. Raises ValueError naming the option and the file that cannot be used."""
    # OpenSSL reads the files with more to say than gRPC, which would fail at the handshake.
    _context(files)
    return grpc.ssl_channel_credentials(
        root_certificates=Path(files.ca).read_bytes() if files.ca else None,
        private_key=Path(files.key).read_bytes() if files.key else None,
        certificate_chain=Path(files.cert).read_bytes() if files.cert else None,
    )


async def why_no_handshake(place: str, files: TlsFiles) -> str | None:
    """Why no TLS session with HOST:PORT comes about, or None where TLS is not to blame."""
    return await asyncio.get_running_loop().run_in_executor(None, _probe, place, files)


async def speaks_tls(place: str) -> bool:
    """Whether somebody at HOST:PORT speaks TLS, whoever it is."""
    return await asyncio.get_running_loop().run_in_executor(None, _meets_tls, place)


def _connect(place: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols(["h2"])
    connection = socket.create_connection((host, int(port)), timeout=PROBE_S)
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _meets_tls(place: str) -> bool:
    context = ssl.create_default_context()
    # Nothing is said there: it does not matter who it is.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _connect(place, context).close()
    except OSError:
        return False
    return True


def _probe(place: str, files: TlsFiles) -> str | None:
    try:
        with _connect(place, _context(files)) as encrypted:
            # A server refuses a student's certificate only after the student's end of the handshake is done.
            return None if encrypted.recv(1) else _refused(files)
    except ssl.SSLCertVerificationError as error:
        return _distrusted(error, place.rpartition(":")[0].strip("[]"), files)
    except ssl.SSLError as error:
        if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER_FAILURE" in str(error):
            return "something there speaks in the clear, not TLS: is it grpc://, or another port?"
        if "ALERT" in str(error):
            return f"{_refused(files)} ({error.reason})"
        return None
    except OSError:
        return None


def _distrusted(error: ssl.SSLCertVerificationError, host: str, files: TlsFiles) -> str:
    """This student does not believe the server."""
    why = error.verify_message
    if "expired" in why:
        return (
            "the server's certificate, or one that vouches for it, has expired: its administrator must renew it "
            "(or is this machine's clock wrong?)"
        )
    if "not yet valid" in why:
        return "the server's certificate is not valid yet: is this machine's clock right?"
    if "mismatch" in why:
        return (
            f"the server's certificate is not for {host!r} ({why.rstrip('.')}): use the name that it is for, or make "
            "one with this name among its subjectAltNames"
        )
    if "local issuer" in why or "self-signed" in why or "self signed" in why:
        believed = f"the authorities in ca={files.ca}" if files.ca else "the usual public authorities"
        return (
            f"the server's certificate is by none of {believed} ({why}): ca= must name the certificate of the "
            "authority that signed it"
        )
    return f"the server's certificate cannot be trusted: {why}"


def _refused(files: TlsFiles) -> str:
    """The server does not believe this student."""
    if files.cert:
        return (
            f"the server does not accept this student's certificate, cert={files.cert}: expired, or by none of the "
            "authorities in its --tls-client-ca"
        )
    return "the server asks students for certificates: add cert=FILE&key=FILE, by an authority in its --tls-client-ca"


def _context(files: TlsFiles) -> ssl.SSLContext:
    for option, file in (("ca", files.ca), ("cert", files.cert), ("key", files.key)):
        if file:
            try:
                Path(file).open("rb").close()
            except OSError as error:
                raise ValueError(f"{option}={file}: cannot read it: {error.strerror}") from error
    try:
        context = ssl.create_default_context(cafile=files.ca or None)
    except ssl.SSLError as error:
        raise ValueError(f"ca={files.ca} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error
    if files.cert:
        try:
            # A password would be asked for at the terminal.
            context.load_cert_chain(files.cert, files.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            why = "is protected by a password" if isinstance(error, ValueError) else "is no key in PEM, or not the key"
            raise ValueError(f"key={files.key} {why} of the certificate in cert={files.cert}") from error
    return context


def _no_password() -> str:
    raise ValueError("a password")
