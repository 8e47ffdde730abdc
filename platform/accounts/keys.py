"""The form of API keys: `ser_<id>.<secret>`; only the secret's sha256 is kept (240 random bits need no slow hash)."""

from __future__ import annotations

import hashlib
import hmac
import secrets

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_key() -> tuple[str, str]:
    """(id of 12 characters, secret of 40 characters)."""
    return "".join(secrets.choice(ALPHABET) for _ in range(12)), secrets.token_urlsafe(30)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def token(key_id: str, secret: str) -> str:
    return f"ser_{key_id}.{secret}"


def split(text: str) -> tuple[str, str] | None:
    """(id, secret) of a token; None when it has not the form of one."""
    head, dot, secret = text.partition(".")
    if not dot or not head.startswith("ser_") or len(head) != 16 or not secret:
        return None
    return head[4:], secret


def matches(secret: str, wanted_digest: str) -> bool:
    return hmac.compare_digest(digest(secret), wanted_digest)
