"""Functions that numba compiled for C, kept on disk as object code (`inference.protocol.compiled`): made once on a machine,
read within milliseconds afterwards. In a form of our own, since numba's is Python's pickles.
"""

# mypy: disable-error-code="no-untyped-call, attr-defined, import-untyped"
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
from llvmlite import binding
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from inference.protocol import compiled


class _Kept(msgspec.Struct, array_like=True):
    library: str
    symbol: str
    code: bytes  # an object file
    shared: bytes  # LLVM bitcode of the same


@dataclass(slots=True)
class Counts:
    """Functions that this process has read from disk, and those that it has compiled."""

    read: int = 0
    made: int = 0


counts = Counts()
_alive: list[CFunc] = []


class _Store:
    """What numba asks for a function before it compiles one, and tells after it."""

    def __init__(self, name: str) -> None:
        readable = "".join(letter if letter.isalnum() else "-" for letter in name)[-80:]
        self.name = f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        self._place = compiled.folder()

    def load_overload(self, _signature: Any, context: Any) -> Any:
        context.refresh()  # what the code is linked with is there from here on
        data = compiled.read(self.name, self._place)
        if data is None:
            return None
        counts.read += 1
        kept = msgspec.msgpack.decode(data, type=_Kept)
        library = context.codegen().unserialize_library((kept.library, "object", (kept.code, kept.shared)))
        return SimpleNamespace(library=library, fndesc=SimpleNamespace(llvm_cfunc_wrapper_name=kept.symbol))

    def save_overload(self, _signature: Any, made: Any) -> None:
        counts.made += 1
        if made.library.has_dynamic_globals:  # addresses of this process are in it
            return
        library, _, (code, shared) = made.library.serialize_using_object_code()
        kept = _Kept(library, made.fndesc.llvm_cfunc_wrapper_name, code, shared)
        compiled.write(self.name, msgspec.msgpack.encode(kept), self._place)


def compiled_apart(function: Any, signature: Any, name: str, **options: Any) -> Any:
    """The function as other compiled ones call it: by a symbol, so that they can be kept too, and hold no address of this
    process. Out of the store where it is there. name: another for each function, and for each form of a closure.
    """
    found = CFunc(function, normalize_signature(signature), locals={}, options=options)
    store = _Store(name)
    found._cache = store  # noqa: SLF001 (there is no other way in)
    found.compile()
    _alive.append(found)
    symbol = f"serinus.{store.name}"
    binding.add_symbol(symbol, found.address)
    return types.ExternalFunction(symbol, signature)
