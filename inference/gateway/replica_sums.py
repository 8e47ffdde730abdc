"""What replicas told of themselves, as sums that never fall: over their restarts, and over those of this gateway.

A scraper takes a counter that falls for one that began anew at 0, and counts all of it again. So what a replica had
done when it ended stays counted, and is kept in a file; what it tells beyond reason is not taken.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import msgspec

from inference.gateway.absences import Absences
from inference.protocol import custom_metrics, files
from inference.protocol.statistics import GenerationStatistics, Histogram, ModelStatistics

Key = tuple[str, str]
MAX_BATCH_SIZES, MAX_NAMES = 4096, 64
_NAME = re.compile(r"[a-z_]{1,32}(:[0-9]{1,3})?")
_log = logging.getLogger(__name__)


class Sums(msgspec.Struct):
    """One version's sums: of its replicas now, by name, and of those that are gone or were started anew."""

    now: dict[str, ModelStatistics] = msgspec.field(default_factory=dict)
    past: ModelStatistics = msgspec.field(default_factory=ModelStatistics)

    def tell(self, replica: str, found: ModelStatistics) -> None:
        """What this replica has done so far."""
        if not is_sound(found):
            _log.warning("what replica %s tells of itself cannot be: not counted", replica)
            return
        last = self.now.get(replica)
        if last is not None and not _same_life(last, found):
            self._retire(last)
        self.now[replica] = found

    def keep(self, replicas: Iterable[str]) -> None:
        """Retires every replica that is not among these."""
        for gone in self.now.keys() - set(replicas):
            self._retire(self.now.pop(gone))

    def rest(self, replica: str) -> None:
        """This replica cannot be asked now: its sums stay, what it has of the moment does not."""
        last = self.now.get(replica)
        if last is not None:
            _forget_now(last)

    def total(self) -> ModelStatistics:
        total = ModelStatistics()
        for one in (*self.now.values(), self.past):  # where two do not fit, those that live count
            total.merge(one)
        return total

    def _retire(self, last: ModelStatistics) -> None:
        _forget_now(last)
        self.past.merge(last)


def _forget_now(last: ModelStatistics) -> None:
    last.queue_depth = last.in_flight = last.open_sequences = 0
    last.memory = {}
    custom_metrics.forget_now(last.custom)
    if last.generation is not None:
        last.generation.forget_now()


def _same_life(last: ModelStatistics, found: ModelStatistics) -> bool:
    return last.life == found.life and _ended(found) >= _ended(last)


def _ended(found: ModelStatistics) -> int:
    return found.success.count + found.fail.count + found.execution_count


def is_sound(found: ModelStatistics) -> bool:
    """Whether it can be merged and shown. A replica may run anybody's code: it must not break the page of all others."""
    bounded = _are_names(found.memory) and len(found.batches) <= MAX_BATCH_SIZES
    return (
        bounded and custom_metrics.are_sound(found.custom) and (found.generation is None or _is_sound(found.generation))
    )


def _is_sound(found: GenerationStatistics) -> bool:
    fields = [getattr(found, name) for name in found.__struct_fields__]
    return _are_names(found.finished) and all(_fits(one) for one in fields if isinstance(one, Histogram))


def _are_names(found: Mapping[str, int]) -> bool:
    """They become labels."""
    return len(found) <= MAX_NAMES and all(map(_NAME.fullmatch, found))


def _fits(found: Histogram) -> bool:
    edges = found.edges
    rises = all(low < high for low, high in pairwise(edges))
    return rises and len(found.counts) == (len(edges) + 1 if edges else 0)


class _Entry(msgspec.Struct):
    endpoint: str
    version: str
    sums: Sums


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Entry]).decode


class Kept:
    """The sums of all versions, and the file that they survive a restart of this process in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = b""
        self._absent: Absences[Key] = Absences()
        self.sums: dict[Key, Sums] = {}

    def load(self) -> None:
        """Takes the file, if there is one. Nothing in it is of this moment."""
        try:
            entries = _decode(self._path.read_bytes())
        except OSError:
            return
        except msgspec.MsgspecError:
            _log.warning("the sums in %s cannot be read: replicas' counters begin with what they tell", self._path)
            return
        for one in entries:
            for last in one.sums.now.values():
                _forget_now(last)
            self.sums[one.endpoint, one.version] = one.sums

    def of(self, key: Key) -> Sums:
        return self.sums.setdefault(key, Sums())

    def keep(self, keys: Iterable[Key], now_s: float) -> None:
        """Forgets versions that have not been among these for a while."""
        for key in self._absent.over(self.sums.keys() - set(keys), now_s):
            del self.sums[key]

    def unsaved(self) -> bytes:
        """What `save` is to write; empty where the file has it."""
        data = _encode([_Entry(*key, sums) for key, sums in sorted(self.sums.items())])
        return b"" if data == self._written else data

    def save(self, data: bytes) -> None:
        """Blocks while it writes."""
        try:
            files.put(self._path, data)
            self._written = data
        except OSError as error:
            _log.warning("the sums of replicas could not be written to disk: %s", error)
