"""Where chat templates run: jinja2's immutable sandbox with transformers' additions, and an end to everything.

The sandbox keeps a template from the interpreter; it does not keep it from running for ever or filling the memory. So
each loop's step and each macro's call is counted, each value that operators, filters or string methods make is
measured before it is made, and a clock is looked at in all of these. What remains between two looks is one native
operation on values of bounded size.
"""

from __future__ import annotations

import contextvars
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from inference.errors import InvalidInput

_FORBIDDEN_FILTERS = ("urlize", "wordwrap", "filesizeformat", "random")
_BIG_WIDTH = re.compile(r"[0-9]{5,}|%[^%a-zA-Z]*\*")
_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "format", "format_map"})


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """source, value, output: characters (of the template, of any one value, of all that is written). steps: of loops
    and calls. seconds: of one rendering.
    """

    source: int = 1 << 18
    value: int = 1 << 23
    output: int = 1 << 23
    steps: int = 500_000
    seconds: float = 2.0


class _Exceeded(Exception):
    """The template goes beyond its bounds."""


class _Budget:
    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self.steps = limits.steps
        self.output = limits.output
        self.ends_at = time.monotonic() + limits.seconds

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise _Exceeded(f"makes more than {self.limits.steps} steps")
        if time.monotonic() > self.ends_at:
            raise _Exceeded(f"takes longer than {self.limits.seconds:g} s")

    def write(self, characters: int) -> None:
        self.step()
        self.output -= characters
        if self.output < 0:
            raise _Exceeded(f"writes more than {self.limits.output} characters")

    def make(self, size: int) -> None:
        self.step()
        if size > self.limits.value:
            raise _Exceeded(f"makes a value of more than {self.limits.value} characters or items")


_current: contextvars.ContextVar[_Budget] = contextvars.ContextVar("template_budget")


class _Counted(NodeTransformer):
    """Puts a count at the head of every loop's and macro's body and before all text, and measures `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # jinja2 finds it by this name
        self.generic_visit(node)
        node.body.insert(0, _call("step", [], node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802  # jinja2 finds it by this name
        self.generic_visit(node)
        node.body.insert(0, _call("step", [], node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802  # jinja2 finds it by this name
        self.generic_visit(node)
        made = nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None)
        made.set_lineno(node.lineno)
        return made

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802  # jinja2 finds it by this name
        self.generic_visit(node)
        text = sum(len(one.data) for one in node.nodes if isinstance(one, nodes.TemplateData))
        return [_call("wrote", [nodes.Const(text)], node.lineno), node] if text else [node]


def _call(name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Node:
    called = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    return nodes.ExprStmt(called).set_lineno(lineno)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; for a prompt it is only its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _TemplateNamespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works
        self, given = args[0], args[1:]
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _checked(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.__setitem__(self, _checked(name), value)


def _checked(name: str) -> str:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no attribute {name!r}")
    return name


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  # the model's prompt says the local day, as transformers does


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_context
def _finalize(_context: Context, value: Any) -> Any:
    """With the context passed, so that nothing of an output is computed when the template is compiled."""
    budget = _current.get()
    budget.make(extent(value, budget.limits.value))
    text = value if isinstance(value, str) else str(value)
    budget.write(len(text))
    return text


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders within `limits`. Holds nothing of a rendering: threads may share it."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, limits: TemplateLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_finalize,
            optimized=False,
            cache_size=0,
        )
        self.limits = limits
        for name in _FORBIDDEN_FILTERS:
            self.filters.pop(name, None)
        self.filters = {name: _measured(name, filter_) for name, filter_ in {**self.filters, "tojson": _tojson}.items()}
        self.globals.pop("lipsum", None)
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_TemplateNamespace)

    def step(self) -> None:
        _current.get().step()

    def wrote(self, characters: int) -> None:
        _current.get().write(characters)

    def joined(self, *parts: Any) -> str:
        budget = _current.get()
        budget.make(sum(extent(part, budget.limits.value) for part in parts))
        return "".join(str(part) for part in parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _current.get().make(_binary_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063  # as jinja2's
        budget = _current.get()
        budget.step()
        name = getattr(__obj, "__name__", "")
        if name in _METHODS:
            subject = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
            budget.make(_method_size(name, subject, args, kwargs))
        return super().call(__context, __obj, *args, **kwargs)

    def parsed(self, source: str) -> nodes.Template:
        """The tree as it was written. Raises InvalidInput."""
        if len(source) > self.limits.source:
            raise InvalidInput(f"the chat template has more than {self.limits.source} characters")
        try:
            return self.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidInput(f"the chat template cannot be read: {error.message} (line {error.lineno})") from None
        except RecursionError:
            raise InvalidInput("the chat template is nested too deep") from None

    def compiled(self, source: str) -> jinja2.Template:
        """Raises InvalidInput."""
        tree = self.parsed(source)
        try:
            tree = _Counted().visit(tree)
            tree.set_environment(self)
            code = self.compile(tree)
            return jinja2.Template.from_code(self, code, self.make_globals(None))
        except (jinja2.TemplateError, SyntaxError) as error:
            raise InvalidInput(f"the chat template cannot be compiled: {error}") from None
        except (RecursionError, MemoryError):
            raise InvalidInput("the chat template is nested too deep") from None

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Raises InvalidInput: with the template's words where it raised, and for whatever else it did not get done."""
        held = _current.set(_Budget(self.limits))
        try:
            return "".join(template.generate(**variables))
        except _Exceeded as error:
            raise InvalidInput(f"the chat template {error}") from None
        except jinja2.TemplateError as error:
            raise InvalidInput(f"the chat template does not take this chat: {error.message or error}") from None
        except (RecursionError, MemoryError):
            raise InvalidInput("the chat template calls itself too deep") from None
        except Exception as error:  # noqa: BLE001  # a template raises whatever Python raises
            raise InvalidInput(f"the chat template does not take this chat: {type(error).__name__}: {error}") from None
        finally:
            _current.reset(held)


def extent(value: Any, most: int) -> int:
    """About how many characters `value` written out has, or something above `most`: lists may hold one text many times."""
    found, waiting = 0, [value]
    while waiting and found <= most:
        one = waiting.pop()
        found += 1 if isinstance(one, (list, tuple, dict)) else _size(one) or 1
        if isinstance(one, (list, tuple)):
            found += len(one)
            waiting += one if found <= most else []
        elif isinstance(one, dict):
            found += len(one)
            waiting += [*one.keys(), *one.values()] if found <= most else []
        elif isinstance(one, int):
            found += one.bit_length() // 3
    return found


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, range)) else 0


def _numbers(values: Iterable[Any]) -> int:
    return max((abs(value) for value in values if isinstance(value, int)), default=0)


def _binary_size(operator: str, left: Any, right: Any) -> int:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        return int(left.bit_length()) * max(int(right), 0) if numbers else 0
    if operator == "*":
        if numbers:
            return int(left.bit_length()) + int(right.bit_length())
        return max(_size(left) * _numbers([right]), _size(right) * _numbers([left]))
    if operator == "+":
        return _size(left) + _size(right)
    return _format_size(left, [right]) if isinstance(left, str) else 0


def _format_size(form: str, values: Iterable[Any]) -> int:
    """More than any text that `form` can make of these values, taking each at every place."""
    if _BIG_WIDTH.search(form) or re.search(r"\{[^{}]*:[^{}]*\{", form):
        raise _Exceeded("formats with a width that is not small and fixed")
    places = form.count("%") + form.count("{")
    return len(form) + places * (10_000 + extent(list(values), 1 << 30))


def _method_size(name: str, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    values = [*args, *kwargs.values()]
    if not isinstance(subject, (str, bytes)):
        return 0
    if name in {"format", "format_map"}:
        return _format_size(str(subject), values)
    if name == "join":
        items = values[0] if values and isinstance(values[0], (list, tuple, dict, str)) else []
        return sum(_size(item) + len(subject) for item in items)
    if name == "replace":
        return _replace_size(subject, values)
    return len(subject) * (_numbers(values) or 8) if name == "expandtabs" else len(subject) + _numbers(values)


def _replace_size(subject: Any, values: list[Any]) -> int:
    if len(values) < 2 or not isinstance(values[0], str) or not isinstance(values[1], str):
        return 0
    return len(subject) + str(subject).count(values[0]) * len(values[1])


def _filter_size(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    values = [*args, *kwargs.values()]
    if name == "replace":
        return _replace_size(str(value), values)
    if name == "format":
        return _format_size(str(value), values)
    if name in {"center", "batch", "slice"}:
        return _size(value) + _numbers(values)
    return _written_size(name, value, values)


def _written_size(name: str, value: Any, values: list[Any]) -> int:
    if name in {"string", "escape", "e", "forceescape", "upper", "lower", "trim", "title", "capitalize", "striptags"}:
        return extent(value, 1 << 24)
    if name in {"indent", "tojson", "pprint"}:
        lines = str(value).count("\n") if name == "indent" else extent(value, 1 << 24)
        return (1 + _numbers(values)) * (1 + lines)
    if name == "join":
        separator = _size(values[0]) if values else 0
        return extent(value, 1 << 24) + separator * _size(value)
    return 0


def _measured(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    passes = 1 if hasattr(inner, "jinja_pass_arg") else 0

    @wraps(inner)
    def measured(*args: Any, **kwargs: Any) -> Any:
        budget = _current.get()
        budget.make(_filter_size(name, args[passes], args[passes + 1 :], kwargs))
        made = inner(*args, **kwargs)
        budget.make(_size(made))
        return made

    return measured
