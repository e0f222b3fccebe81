"""
The key of this installation, and what it puts on a webhook.

The receiver rebuilds four lines from the headers and the body that it got (request, user, timestamp, SHA-256 of the
body in hex), and verifies the ED25519 signature with the key that we publish as a JWKS.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from falctl.errors import StartError
from falctl.private_file import write_private

_KEY_BYTES: Final = 32


class Signer:
    """Signs with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()
        self.user = "falctl-" + hashlib.sha256(self._public).hexdigest()[:16]
        """Whose webhooks these are: this installation's. It lasts as long as the key."""

    def headers(self, request: str, body: bytes, *, at: float) -> dict[str, str]:
        """Return the headers of a webhook about *request*, sent *at* an instant of the wall clock."""
        timestamp = str(int(at))
        lines = (request, self.user, timestamp, hashlib.sha256(body).hexdigest())
        return {
            "X-Fal-Webhook-Request-Id": request,
            "X-Fal-Webhook-User-Id": self.user,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self._key.sign("\n".join(lines).encode()).hex(),
        }

    def jwks(self) -> dict[str, Any]:
        """Return the public key as a JSON Web Key Set (RFC 8037)."""
        x = _base64url(self._public)
        thumbprint = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
        key = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": _base64url(thumbprint)}
        return {"keys": [key | {"use": "sig", "alg": "EdDSA"}]}


def open_signer(path: Path) -> Signer:
    """
    Return a signer with the key at *path*, which is made, durable and private, if there is none. Blocks.

    Raises:
        StartError: what is there is no key, or none can be written.
    """
    try:
        if not path.exists():
            key = Ed25519PrivateKey.generate().private_bytes_raw()
            write_private(path, key, replace=False)
        content = path.read_bytes()
    except OSError as error:
        msg = f"the key of webhooks {path} cannot be used ({error.strerror}); make room, or make it readable"
        raise StartError(msg) from error
    if len(content) != _KEY_BYTES:
        msg = f"{path} is no key of webhooks: move it away, and another is made, which receivers fetch anew"
        raise StartError(msg)
    return Signer(Ed25519PrivateKey.from_private_bytes(content))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
