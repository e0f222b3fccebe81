"""The certificates of the TLS port: what they are good for, when they are made anew, who may read them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.x509 import verification

from falctl.clock import wall_clock
from falctl.config import ServerConfig
from falctl.home import Home
from falctl.router.edge.certificates import CA_FOR, CA_LEFT, SERVER_FOR, SERVER_LEFT, Certificates
from falctl.router.edge.tls import Tls

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def made(folder: Path, *names: str, now: datetime = NOW) -> bool:
    return Certificates(folder / "tls", bundle=folder / "tls" / "bundle.pem", names=names).refresh(now=now)


def load(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "tls" / f"{name}.pem").read_bytes())


def is_trusted(folder: Path, name: str, *, now: datetime = NOW) -> bool:
    """Return whether a strict client that trusts the bundle's last certificate believes the server to be *name*."""
    ours = (folder / "tls" / "bundle.pem").read_bytes().rpartition(b"# falctl")[2]
    store = verification.Store(x509.load_pem_x509_certificates(ours))
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    verifier = verification.PolicyBuilder().store(store).time(now).build_server_verifier(subject)
    try:
        verifier.verify(load(folder, "server"), [])
    except verification.VerificationError:
        return False
    return True


def test_a_client_that_trusts_the_bundle_trusts_loopback_and_our_names_alone(tmp_path: Path) -> None:
    assert made(tmp_path, "box.lan", "192.168.7.3", "[fd00::1]")
    for name in ("localhost", "127.0.0.1", "::1", "box.lan", "192.168.7.3", "fd00::1"):
        assert is_trusted(tmp_path, name), name
    for name in ("fal.run", "example.com", "192.168.7.4"):
        assert not is_trusted(tmp_path, name), name


def test_the_bundle_has_the_public_authorities_and_ours(tmp_path: Path) -> None:
    made(tmp_path)
    bundle = (tmp_path / "tls" / "bundle.pem").read_text()
    assert bundle.startswith(Path(certifi.where()).read_text())
    assert (tmp_path / "tls" / "ca.pem").read_text() in bundle


def test_nobody_else_may_read_any_of_it(tmp_path: Path) -> None:
    made(tmp_path)
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    files = sorted((tmp_path / "tls").iterdir())
    assert [path.name for path in files] == ["bundle.pem", "ca.key", "ca.pem", "server.key", "server.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    made(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    assert not made(tmp_path, now=NOW + SERVER_FOR - SERVER_LEFT - timedelta(minutes=1))
    assert {path: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before


def test_the_servers_is_made_anew_before_it_ends_by_the_same_authority(tmp_path: Path) -> None:
    made(tmp_path)
    ca, server = load(tmp_path, "ca"), load(tmp_path, "server")
    later = NOW + SERVER_FOR - SERVER_LEFT
    assert made(tmp_path, now=later)
    assert load(tmp_path, "ca") == ca
    assert load(tmp_path, "server") != server
    assert is_trusted(tmp_path, "localhost", now=later + SERVER_FOR - timedelta(minutes=1))


def test_the_authority_is_made_anew_long_before_it_ends(tmp_path: Path) -> None:
    made(tmp_path)
    ca = load(tmp_path, "ca")
    later = NOW + CA_FOR - CA_LEFT
    assert made(tmp_path, now=later)
    assert load(tmp_path, "ca") != ca
    assert is_trusted(tmp_path, "localhost", now=later)


def test_other_names_and_a_clock_that_was_wrong_make_another(tmp_path: Path) -> None:
    made(tmp_path)
    assert made(tmp_path, "box.lan")
    assert not made(tmp_path, "box.lan")
    assert made(tmp_path, "box.lan", now=NOW - timedelta(days=100))
    assert is_trusted(tmp_path, "box.lan", now=NOW - timedelta(days=100))


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.pem", "server.key", "bundle.pem"])
@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_lost_or_damaged_is_made_anew(tmp_path: Path, name: str, content: bytes | None) -> None:
    made(tmp_path)
    path = tmp_path / "tls" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    made(tmp_path)
    assert is_trusted(tmp_path, "localhost")
    assert not made(tmp_path)


def test_a_key_that_belongs_to_another_certificate_is_not_used(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "tls" / "server.key").write_bytes((tmp_path / "tls" / "ca.key").read_bytes())
    assert made(tmp_path)


def test_a_name_that_no_certificate_can_have_is_left_out(tmp_path: Path) -> None:
    made(tmp_path, "a..b", "x" * 300)
    assert is_trusted(tmp_path, "localhost")
    assert not made(tmp_path, "a..b", "x" * 300)


def test_names_that_a_reload_brings_get_a_certificate_without_a_restart(tmp_path: Path) -> None:
    tls = Tls(Home(tmp_path), ServerConfig())
    assert not is_trusted(tmp_path, "box.lan", now=wall_clock())
    before = presented(tls)
    asyncio.run(tls.rename(ServerConfig(hosts=("box.lan",))))
    assert is_trusted(tmp_path, "box.lan", now=wall_clock())
    assert presented(tls) != before


def presented(tls: Tls) -> bytes:
    """Return the certificate that a client is shown now."""
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(here, there)
    theirs = tls.context.wrap_bio(there, here, server_side=True)
    for side in (ours, theirs, ours):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    certificate = ours.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate
