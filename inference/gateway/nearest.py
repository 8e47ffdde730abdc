"""Which name a caller may have meant: a few look-ups in memory, whatever the name and however many there are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MAX_COMPARED = 64
MAX_APART = 2  # in length


def meant(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest of the known names, to be put after an error; "" where none is near."""
    alike = islice((one for one in known if abs(len(one) - len(name)) <= MAX_APART), MAX_COMPARED)
    small = {one.lower(): one for one in alike}
    found = get_close_matches(name.lower(), small, n=1)
    return f". Did you mean '{small[found[0]]}'?" if found else ""
