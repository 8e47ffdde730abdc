"""The form of the names that people give to things: slugs, never paths."""

from __future__ import annotations

import re

from inference.errors import ClientError

SLUG = r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}"
USERNAME = r"[a-zA-Z0-9][a-zA-Z0-9_.@+-]{0,149}"
KEY_ID = r"[0-9a-z]{12}"
_SLUG = re.compile(SLUG)
_USERNAME = re.compile(USERNAME)


def check_slug(kind: str, text: str) -> str:
    """`text`, if it can name a `kind`; raises ClientError telling the form otherwise."""
    if not _SLUG.fullmatch(text):
        raise ClientError(
            f"'{text[:80]}' cannot name a {kind}: use 1 to 64 letters, digits, '-' and '_', first a letter or digit"
        )
    return text


def check_username(text: str) -> str:
    if not _USERNAME.fullmatch(text):
        raise ClientError(
            f"'{text[:80]}' cannot be a user name: use 1 to 150 letters, digits and '@.+-_', first a letter or digit"
        )
    return text


def is_storable(text: str) -> bool:
    """PostgreSQL keeps neither NUL nor half a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def check_text(kind: str, text: str, limit: int) -> str:
    """`text`, if it is at most `limit` characters and can be stored."""
    if len(text) > limit or not is_storable(text):
        raise ClientError(f"the {kind} must be at most {limit} characters and hold no NUL character")
    return text
