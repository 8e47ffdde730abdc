"""Functions that numba compiled, kept on disk as object code (`inference.protocol.compiled`): made once on a machine, read
within milliseconds afterwards. In a form of our own, since numba's is Python's pickles and cannot hold what has a closure.
"""

# mypy: disable-error-code="no-untyped-call, attr-defined, import-untyped"
from __future__ import annotations

import hashlib
import itertools
import os
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import numba
from llvmlite import binding
from numba import _dynfunc
from numba.core import types
from numba.core.bytecode import FunctionIdentity
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.core.sigutils import normalize_signature

from inference.protocol import compiled


class _Kept(msgspec.Struct, array_like=True):
    library: str
    symbol: str
    environment: str  # symbol of what Python's wrapper looks into
    code: bytes  # an object file
    shared: bytes  # LLVM bitcode of the same


@dataclass(slots=True)
class Counts:
    """Functions that this process has read from disk, and those that it has compiled."""

    read: int = 0
    made: int = 0


counts = Counts()
_alive: list[Any] = []


def _own_names() -> None:
    """What is compiled from here on gets symbols that no other process gives. numba counts functions up from 1 in each, and
    the count is all that tells the symbols of one closure's forms apart: the code of two processes, linked in a third,
    would call each other's functions.
    """
    FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(6), "big") << 12)  # noqa: SLF001


class _Store:
    """Where one function is kept. name: another for each function, and for each form of it that a closure makes."""

    def __init__(self, function: Any, form: object) -> None:
        assert function.__closure__ is None or form is not None, "what its closure holds must have a name"
        name = f"{function.__module__}.{function.__qualname__} {'' if form is None else repr(form)}"
        readable = "".join(letter if letter.isalnum() else "-" for letter in name)[-80:]
        self.name = f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        self._place = compiled.folder()

    def read(self) -> tuple[_Kept, Any] | None:
        """What is kept, and its code, ready to be called."""
        context = cpu_target.target_context
        context.refresh()  # what the code is linked with is there from here on
        data = compiled.read(self.name, self._place)
        if data is None:
            return None
        counts.read += 1
        kept = msgspec.msgpack.decode(data, type=_Kept)
        return kept, context.codegen().unserialize_library((kept.library, "object", (kept.code, kept.shared)))

    def write(self, made: Any, symbol: str) -> None:
        counts.made += 1
        constants = made.environment.consts if made.environment is not None else []
        if made.library.has_dynamic_globals or constants:  # addresses and objects of this process
            return
        library, _, (code, shared) = made.library.serialize_using_object_code()
        environment = cpu_target.target_context.get_env_name(made.fndesc)
        kept = _Kept(library, symbol, environment, code, shared)
        compiled.write(self.name, msgspec.msgpack.encode(kept), self._place)

    # -- what numba asks for a function before it compiles one for C, and tells after it ------------------------------

    def load_overload(self, _signature: Any, _context: Any) -> Any:
        found = self.read()
        if found is None:
            return None
        kept, library = found
        return SimpleNamespace(library=library, fndesc=SimpleNamespace(llvm_cfunc_wrapper_name=kept.symbol))

    def save_overload(self, _signature: Any, made: Any) -> None:
        self.write(made, made.fndesc.llvm_cfunc_wrapper_name)


def for_loops(function: Any, signature: Any, form: object = None, **options: Any) -> Any:
    """The function as other compiled ones call it: by a symbol, so that they can be kept too, and hold no address of this
    process. form: what else than its text it depends on, where it is a closure.
    """
    store = _Store(function, form)
    found = CFunc(function, normalize_signature(signature), locals={}, options=options)
    found._cache = store  # noqa: SLF001 (there is no other way in)
    _own_names()
    found.compile()
    _alive.append(found)
    symbol = f"serinus.{store.name}"
    binding.add_symbol(symbol, found.address)
    return types.ExternalFunction(symbol, signature)


def for_python(function: Any, signature: Any, form: object = None, **options: Any) -> Any:
    """The function as Python calls it, with arguments of exactly these types; form as in `for_loops`."""
    store = _Store(function, form)
    found = store.read()
    if found is None:
        _own_names()
        dispatcher = numba.njit(signature, **options)(function)
        (made,) = dispatcher.overloads.values()
        _alive.append(dispatcher)
        store.write(made, made.fndesc.llvm_cpython_wrapper_name)
        return made.entry_point
    kept, library = found
    environment = _dynfunc.Environment(function.__globals__)
    library.codegen.set_env(kept.environment, environment)
    pointer = library.get_pointer_to_function(kept.symbol)
    module, about = sys.modules[function.__module__], function.__doc__ or ""
    return _dynfunc.make_function(module, function.__name__, about, pointer, environment, (library,))
