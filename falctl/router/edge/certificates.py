"""
The certificates of the TLS port: an authority of our own, and what it certifies of this machine.

    ca.pem, ca.key          made once; whoever trusts ca.pem trusts this falctl
    server.pem, server.key  for the loopback names and those of server.hosts; made anew before they end
    bundle.pem              the public authorities (certifi) and ours: what SSL_CERT_FILE of a client is to name

All of them lie in a folder that only its owner may enter. What cannot be read is made anew.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import certifi
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from falctl.private_file import write_private

log = logging.getLogger(__name__)

CA_FOR: Final = timedelta(days=3650)
CA_LEFT: Final = timedelta(days=365)
"""With less time left a new authority is made; clients need the new bundle then."""
SERVER_FOR: Final = timedelta(days=90)
SERVER_LEFT: Final = timedelta(days=30)
_BEFORE: Final = timedelta(days=1)
"""Clocks differ."""
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Certificates:
    """Owner of the folder."""

    def __init__(self, folder: Path, *, bundle: Path, names: Iterable[str]) -> None:
        """*names* are what clients call this machine besides loopback."""
        self._folder = folder
        self._bundle = bundle
        self._names = list(dict.fromkeys([*_LOOPBACK, *names]))

    @property
    def chain(self) -> tuple[Path, Path]:
        """Return the files of the server's certificate and key."""
        return self._folder / "server.pem", self._folder / "server.key"

    def refresh(self, *, now: datetime) -> bool:
        """Make what is missing or ends soon; return whether the server's certificate is another one. Blocks. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca = self._load("ca")
        if ca is None or not _lasts(ca, now, CA_LEFT):
            ca = _make_ca(now)
            self._save("ca", ca)
        bundle = Path(certifi.where()).read_bytes() + b"\n# falctl\n" + _pem(ca.certificate)
        if _content(self._bundle) != bundle:
            write_private(self._bundle, bundle)
        server = self._load("server")
        if server is not None and _lasts(server, now, SERVER_LEFT) and self._fits(server, ca):
            return False
        self._save("server", _make_server(ca, self._names, now))
        log.info("certificate.made names=%s", ",".join(self._names))
        return True

    def _fits(self, server: _Pair, ca: _Pair) -> bool:
        """Return whether *server* was made by *ca*, and for our names."""
        try:
            server.certificate.verify_directly_issued_by(ca.certificate)
            named = server.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
            return False
        return list(named) == _general_names(self._names)

    def _load(self, name: str) -> _Pair | None:
        try:
            certificate = x509.load_pem_x509_certificate((self._folder / f"{name}.pem").read_bytes())
            key = serialization.load_pem_private_key((self._folder / f"{name}.key").read_bytes(), None)
        except (OSError, ValueError, TypeError):
            return None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return None
        return _Pair(certificate, key)

    def _save(self, name: str, pair: _Pair) -> None:
        key = pair.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self._folder / f"{name}.key", key)
        write_private(self._folder / f"{name}.pem", _pem(pair.certificate))


def _lasts(pair: _Pair, now: datetime, left: timedelta) -> bool:
    certificate = pair.certificate
    return certificate.not_valid_before_utc <= now and now + left < certificate.not_valid_after_utc


def _make_ca(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"falctl {secrets.token_hex(4)}")])
    usage = _usage(signs_certificates=True)
    certificate = (
        _builder(name, name, key, now, CA_FOR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _make_server(ca: _Pair, names: Iterable[str], now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "falctl")])
    certificate = (
        _builder(name, ca.certificate.subject, key, now, SERVER_FOR)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
        .sign(ca.key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """Return *names* as a certificate has them; one that no certificate can have is left out."""
    found: list[x509.GeneralName] = []
    for name in names:
        bare = name.removeprefix("[").removesuffix("]")
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(bare)))
        except ValueError:
            with contextlib.suppress(ValueError):
                found.append(x509.DNSName(bare.encode("idna").decode()))
    return found


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
