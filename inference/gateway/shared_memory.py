"""System shared memory of clients on this machine: off unless it is allowed, and then within narrow bounds.

The laws: a region's key must bear our prefix, so that no client can name memory that is not meant for this; a region
belongs to the key that registered it; nothing that the client named comes back in an error. A region is read and
written through its descriptor and never mapped: a client that shrinks it while it is in use gets a typed error, where
a mapping would end this process. Inputs are copied once, so what was checked is what is sent.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inference.errors import InvalidInput, NotFound, Overloaded, TooLarge

MAX_REGIONS_OF_KEY = 64
MAX_REGIONS = 1024
HELD_BODIES = 8
FOLDER = Path("/dev/shm")  # noqa: S108 (where the kernel keeps them; names are confined by KEY)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
KEY = re.compile(r"/serinus-client-[A-Za-z0-9_.-]{1,100}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BAD_SPAN = "'shared_memory_offset' and 'shared_memory_byte_size' of {what} do not fit the region"


class Region:
    """A registered piece of shared memory. Its descriptor closes with its last use, not before: the number of one that
    was closed early would soon be somebody else's.
    """

    def __init__(self, name: str, key: str, offset: int, size_bytes: int, folder: Path) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.size_bytes = size_bytes
        self.file = _opened(folder / key[1:])
        weakref.finalize(self, os.close, self.file)
        self._writable = -1
        if self._room() < offset + size_bytes:
            raise InvalidInput("the region is smaller than 'offset' and 'byte_size' say")

    def _room(self) -> int:
        return os.fstat(self.file).st_size

    def fits(self, offset: int, size_bytes: int) -> bool:
        return offset >= 0 and size_bytes > 0 and offset + size_bytes <= self.size_bytes

    def read(self, into: bytearray, offset: int) -> bool:
        """Fills `into`; answers whether that many bytes were there."""
        return os.preadv(self.file, [into], self.offset + offset) == len(into)

    def write(self, data: memoryview, offset: int) -> None:
        """Raises InvalidInput when the region has shrunk or may not be written."""
        at = self.offset + offset
        try:
            if self._writable < 0:
                self._writable = os.open(f"/proc/self/fd/{self.file}", os.O_RDWR | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._writable)
            if self._room() >= at + len(data) and os.pwrite(self._writable, data, at) == len(data):
                return
        except OSError:
            pass
        raise InvalidInput("the region cannot be written")


def _opened(path: Path) -> int:
    """Raises InvalidInput for what is no plain file there."""
    try:
        file = os.open(path, _READ)
    except OSError:
        raise InvalidInput("the region cannot be opened: create it first, under the key that you give") from None
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(file)
        raise InvalidInput("the region cannot be opened: it is no shared memory")
    return file


class _Copy(bytearray):
    """An input's bytes; they count as held until nobody holds them."""

    regions: Regions | None = None

    def __del__(self) -> None:
        if self.regions is not None:
            self.regions.held_bytes -= len(self)


def is_copy(part: bytes | memoryview) -> bool:
    """Whether these bytes were copied out of a client's region, and count as held."""
    return isinstance(part, memoryview) and isinstance(part.obj, _Copy)


@dataclass(frozen=True, slots=True)
class Target:
    """Where an output goes."""

    region: Region = field(repr=False)
    offset: int
    size_bytes: int

    def write(self, data: memoryview, output: str) -> dict[str, int | str]:
        """Writes the output there; answers its parameters. Raises InvalidInput."""
        if len(data) > self.size_bytes:
            raise InvalidInput(
                f"shared memory size specified with the request for output '{output}' ({self.size_bytes} bytes) "
                f"should be at least {len(data)} bytes to hold the results"
            )
        self.region.write(data, self.offset)
        return {
            "shared_memory_region": self.region.name,
            "shared_memory_offset": self.offset,
            "shared_memory_byte_size": len(data),
        }


class Regions:
    """The regions of this process by the key that registered them. limit_bytes: of one request's inputs."""

    def __init__(self, limit_bytes: int, folder: Path = FOLDER) -> None:
        self.held_bytes = 0
        self.limit_bytes = limit_bytes
        self._folder = folder
        self._regions: dict[str, dict[str, Region]] = {}

    def of(self, owner: str) -> Shared:
        """What the caller `owner` may use."""
        return Shared(self, owner)

    def register(self, owner: str, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Raises InvalidInput, or Overloaded when there are too many."""
        if not NAME.fullmatch(name):
            raise InvalidInput("the region's name must be of letters, digits, '_', '.' and '-', at most 128")
        if not KEY.fullmatch(key):
            raise InvalidInput(
                "the region's key must be '/serinus-client-' and up to 100 letters, digits, '_', '.' or '-'"
            )
        if offset < 0 or size_bytes < 1 or offset + size_bytes >= 2**62:
            raise InvalidInput("'offset' and 'byte_size' of the region must be whole numbers, 'byte_size' at least 1")
        own = self._regions.get(owner, {})
        if name in own:
            raise InvalidInput("the region is already registered: unregister it first")
        if len(own) >= MAX_REGIONS_OF_KEY:
            raise Overloaded(f"a key may register at most {MAX_REGIONS_OF_KEY} regions: unregister some")
        if sum(map(len, self._regions.values())) >= MAX_REGIONS:
            raise Overloaded("no more regions can be registered here now")
        own[name] = Region(name, key, offset, size_bytes, self._folder)
        self._regions[owner] = own

    def unregister(self, owner: str, name: str = "") -> None:
        """Forgets one region, or all of this owner's; one that is not there is no error, as Triton has it."""
        own = self._regions.get(owner, {})
        if name:
            own.pop(name, None)
        if not name or not own:
            self._regions.pop(owner, None)

    def keep(self, known: Callable[[str], bool]) -> None:
        """Forgets the regions of keys that are gone."""
        for owner in [owner for owner in self._regions if not known(owner)]:
            del self._regions[owner]

    def status(self, owner: str, name: str = "") -> list[dict[str, int | str]]:
        """Raises NotFound for a region that this owner has not."""
        own = self._regions.get(owner, {})
        if name and name not in own:
            raise NotFound("the region is not registered")
        return [
            {"name": found.name, "key": found.key, "offset": found.offset, "byte_size": found.size_bytes}
            for found in own.values()
            if name in ("", found.name)
        ]

    def find(self, owner: str, name: object) -> Region:
        """Raises InvalidInput."""
        found = self._regions.get(owner, {}).get(name) if type(name) is str else None
        if found is None:
            raise InvalidInput("the region is not registered")
        return found


class Shared:
    """One caller's way to its regions."""

    __slots__ = ("_owner", "_regions")

    def __init__(self, regions: Regions, owner: str) -> None:
        self._regions = regions
        self._owner = owner

    def read(self, parameters: dict[str, str | int | float | bool], name: str, taken: int) -> memoryview:
        """An input's bytes, copied. taken: what the request's other inputs have taken.

        Raises InvalidInput, TooLarge or Overloaded.
        """
        what = f"input '{name}'"
        region, offset, size = self._span(parameters, what)
        regions = self._regions
        if taken + size > regions.limit_bytes:
            raise TooLarge(f"The inputs are larger than the {regions.limit_bytes} bytes that this server accepts")
        if regions.held_bytes + size > HELD_BODIES * regions.limit_bytes:
            raise Overloaded(retry_after_s=1.0)
        copy = _Copy(size)
        copy.regions = regions
        regions.held_bytes += size
        if not region.read(copy, offset):
            raise InvalidInput(_BAD_SPAN.format(what=what))
        return memoryview(copy)

    def target(self, parameters: dict[str, str | int | float | bool], name: str) -> Target:
        """Where an output goes. Raises InvalidInput."""
        return Target(*self._span(parameters, f"output '{name}'"))

    def _span(self, parameters: dict[str, str | int | float | bool], what: str) -> tuple[Region, int, int]:
        region = self._regions.find(self._owner, parameters["shared_memory_region"])
        offset, size = parameters.get("shared_memory_offset", 0), parameters.get("shared_memory_byte_size")
        if type(offset) is not int or type(size) is not int or not region.fits(offset, size):
            raise InvalidInput(_BAD_SPAN.format(what=what))
        return region, offset, size
