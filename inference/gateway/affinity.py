"""Which replica holds which sequence: pure, bounded, told the time.

The law: a sequence's requests go to the replica that got its START. A replica that is lost ends its sequences: their
next request is refused until one starts anew. A gateway that does not know a sequence finds its replica by rendezvous
hashing (Thaler and Ravishankar 1998) of the sequence over the ready replicas, as every other gateway does and as every
START is placed; so gateways agree without a word as long as the replicas stay the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from inference.errors import NotReady, SequenceLost

MAX_SEQUENCES = 65_536
MAX_IDLE_S = 3600.0


@dataclass(frozen=True, slots=True)
class SequenceKey:
    """The id 1 and the id "1" are two sequences."""

    endpoint: str
    version: int
    id: int | str


@dataclass(slots=True)
class _Home:
    """replica: None once it was lost."""

    replica: str | None
    used_at: float


class Affinity:
    """Of one gateway. It remembers `max_sequences`, the least recently used forgotten first, each for `max_idle_s`."""

    def __init__(self, *, max_sequences: int = MAX_SEQUENCES, max_idle_s: float = MAX_IDLE_S) -> None:
        self._max_sequences = max_sequences
        self._max_idle_s = max_idle_s
        self._homes: OrderedDict[SequenceKey, _Home] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    def pick(
        self,
        key: SequenceKey,
        ready: Collection[str],
        *,
        is_start: bool,
        now: float,
        draining: Collection[str] = (),
    ) -> str:
        """The id of the replica for this request. `draining` replicas still get the sequences that they hold.

        Raises SequenceLost when the sequence's replica is gone, NotReady when there is none to choose from.
        """
        self._forget_idle(now)
        home = self._homes.get(key)
        if home is not None and home.replica in ready:
            return self._at(key, home.replica, now)
        if home is not None and not is_start:
            if home.replica is not None and home.replica in draining:
                return self._at(key, home.replica, now)
            self._at(key, None, now)
            raise SequenceLost
        if not ready:
            raise NotReady
        return self._at(key, rendezvous(key, ready), now)

    def version_of(self, endpoint: str, versions: Collection[int], sequence: int | str) -> int | None:
        """The version that an open sequence began on, so that a change of the traffic's shares does not tear it apart."""
        found = [
            (home.used_at, version)
            for version in versions
            if (home := self._homes.get(SequenceKey(endpoint, version, sequence))) is not None
        ]
        return max(found)[1] if found else None

    def ended(self, key: SequenceKey) -> None:
        """Its END was answered, or its START refused."""
        self._homes.pop(key, None)

    def lost(self, replica: str) -> list[SequenceKey]:
        """The replica is gone or began anew: its sequences are over. Returns them."""
        gone = [key for key, home in self._homes.items() if home.replica == replica]
        for key in gone:
            self._homes[key].replica = None
        return gone

    def _at(self, key: SequenceKey, replica: str | None, now: float) -> str:
        self._homes[key] = _Home(replica, now)
        self._homes.move_to_end(key)
        while len(self._homes) > self._max_sequences:
            self._homes.popitem(last=False)
        return replica or ""

    def _forget_idle(self, now: float) -> None:
        while self._homes and now - next(iter(self._homes.values())).used_at > self._max_idle_s:
            self._homes.popitem(last=False)


def rendezvous(key: SequenceKey, replicas: Collection[str]) -> str:
    """The replica whose hash with the sequence is highest; one that comes or goes moves only its own sequences."""
    name = f"{key.endpoint}\0{key.version}\0{type(key.id).__name__}\0{key.id}"

    def weight(replica: str) -> tuple[bytes, str]:
        text = f"{replica}\0{name}".encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=8).digest(), replica

    return max(replicas, key=weight)
