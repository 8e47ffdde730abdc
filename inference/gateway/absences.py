"""Which names have been out of the routing table for so long that nobody scrapes their last numbers any more. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

FORGET_S = 600.0
T = TypeVar("T", bound=Hashable)


class Absences(Generic[T]):
    """Since when each was missing, by one monotonic clock (s)."""

    def __init__(self) -> None:
        self._since: dict[T, float] = {}

    def over(self, missing: set[T], now_s: float) -> list[T]:
        """Of those that are missing now, the ones that have been for FORGET_S; they are forgotten here too."""
        self._since = {one: self._since.get(one, now_s) for one in missing}
        found = [one for one, since in self._since.items() if now_s - since >= FORGET_S]
        for one in found:
            del self._since[one]
        return found
