"""Argument trees of a .pt2 file: tuples, lists and dicts of tensors only.

torch resolves other types by importing what the file names (defaultdict factories, enums), so there are no others here.
"""

from __future__ import annotations

import json
import keyword
import re
from dataclasses import dataclass, field

from inference.artifacts import jsons
from inference.artifacts.paths import shown
from inference.errors import Rejected

MAX_DEPTH = 16
MAX_LEAVES = 4096
REMEDY = (
    "Wrap the model so that forward takes tensors and returns a tensor, a tuple or a dict of tensors; export again."
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
RESERVED = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "math", "operator", "args"}
_KINDS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


@dataclass(frozen=True, slots=True)
class Tree:
    """kind: "" for a leaf, else the container's type; keys: of a dict, in order."""

    kind: str = ""
    keys: tuple[str, ...] = ()
    children: list[Tree] = field(default_factory=list)

    def leaves(self) -> int:
        return sum(child.leaves() for child in self.children) if self.kind else 1


def is_name(text: str) -> bool:
    """Whether torch may write `text` into the Python code that it generates: a plain identifier with no meaning there."""
    return bool(_NAME.fullmatch(text)) and not keyword.iskeyword(text) and text[:2] != "__" and text not in RESERVED


def parse(text: str) -> Tree:
    """The tree that a treespec string describes. Raises Rejected for any type but tuple, list and dict."""
    value = jsons.parse(text.encode("utf-8", "surrogatepass"), "the argument tree", remedy=REMEDY, check="program")
    if not isinstance(value, list) or len(value) != 2 or value[0] != 1:
        raise _refused("is of an unknown version")
    tree = _node(value[1], 0)
    if tree.leaves() > MAX_LEAVES:
        raise _refused("is too large")
    return tree


def write(tree: Tree) -> str:
    """The treespec string of a tree: what torch reads is written by us."""
    return json.dumps([1, _written(tree)])


def _node(value: object, depth: int) -> Tree:
    if depth > MAX_DEPTH or not isinstance(value, dict) or set(value) != {"type", "context", "children_spec"}:
        raise _refused("is malformed")
    kind, context, listed = value["type"], value["context"], value["children_spec"]
    if not isinstance(listed, list) or len(listed) > MAX_LEAVES:
        raise _refused("is malformed")
    if kind is None:
        if context is not None or listed:
            raise _refused("is malformed")
        return Tree()
    if kind not in _KINDS:
        raise _refused(f"holds the type {shown(str(kind))}")
    children = [_node(child, depth + 1) for child in listed]
    keys = _keys(kind, context)
    if kind in {"builtins.dict", "collections.OrderedDict"} and len(keys) != len(children):
        raise _refused("is malformed")
    return Tree(kind, keys, children)


def _keys(kind: str, context: object) -> tuple[str, ...]:
    if not isinstance(context, str) or len(context) > 1 << 20:
        raise _refused("is malformed")
    value = jsons.parse(context.encode("utf-8", "surrogatepass"), "the argument tree", remedy=REMEDY, check="program")
    if kind in {"builtins.tuple", "builtins.list"}:
        if value is not None:
            raise _refused("is malformed")
        return ()
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value) or len(set(value)) != len(value):
        raise _refused("has keys that are not distinct texts")
    for key in value:
        if not is_name(key):
            raise _refused(f"has the key {shown(key)}, which is no plain name")
    return tuple(value)


def _written(tree: Tree) -> dict[str, object]:
    if not tree.kind:
        return {"type": None, "context": None, "children_spec": []}
    context = "null" if tree.kind in {"builtins.tuple", "builtins.list"} else json.dumps(list(tree.keys))
    return {"type": tree.kind, "context": context, "children_spec": [_written(child) for child in tree.children]}


def _refused(why: str) -> Rejected:
    return Rejected(f"the tree of the program's inputs or outputs {why}", remedy=REMEDY, check="program")
