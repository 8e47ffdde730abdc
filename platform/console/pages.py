"""What every page does alike: only for known people, typed errors as pages or toasts, long lists by keyset."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect

from accounts.permissions import Actor, Verb, actor_of, can
from inference.errors import Forbidden, NotFound, SerinusError, Unauthenticated

P = ParamSpec("P")
M = TypeVar("M", bound=Model)
View = Callable[Concatenate[HttpRequest, P], HttpResponseBase]
PAGE_SIZE = 50


def page(view: View[P]) -> View[P]:
    """A view for people who are logged in. What one may not see does not exist; what one may not do is refused."""

    @wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if not actor_of(request).known:
            return _to_login(request)
        try:
            return view(request, *args, **kwargs)
        except NotFound as error:
            raise Http404(error.message) from error
        except (Forbidden, Unauthenticated) as error:
            raise PermissionDenied(error.message) from error

    return wrapped


def _to_login(request: HttpRequest) -> HttpResponse:
    response = redirect_to_login(request.get_full_path())
    if getattr(request, "htmx", False):
        moved = HttpResponse(status=204)
        moved["HX-Redirect"] = response["Location"]
        return moved
    return response


def attempt(request: HttpRequest, back: str, said: str, do: Callable[[], object], *, onward: str = "") -> HttpResponse:
    """Runs an action, says how it went, and goes `onward` after success, else back to `back`.

    A missing right is a page of its own.
    """
    try:
        do()
    except (Forbidden, NotFound):
        raise
    except SerinusError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, said)
        return redirect(onward or back)
    return redirect(back)


def rights(actor: Actor, obj: Any = None) -> dict[str, bool]:
    """Verb -> may the actor do it to `obj`; templates show only what may be done."""
    return {verb.value: can(actor, verb, obj) for verb in Verb}


def keyset(rows: QuerySet[M], request: HttpRequest, *, size: int = PAGE_SIZE) -> tuple[list[M], str]:
    """The newest rows below `?before=`, and the query string of the next page ("" on the last)."""
    before = request.GET.get("before", "")
    rows = rows.order_by("-pk")
    if before.isascii() and before.isdigit():
        rows = rows.filter(pk__lt=min(int(before), 2**63 - 1))
    return _cut(request, list(rows[: size + 1]), size, "before", "pk")


def keyset_by_name(rows: QuerySet[M], request: HttpRequest, *, size: int = PAGE_SIZE) -> tuple[list[M], str]:
    """As keyset, in the order of names, after `?after=`."""
    rows = rows.order_by("name")
    if after := request.GET.get("after", "").replace("\0", ""):
        rows = rows.filter(name__gt=after)
    return _cut(request, list(rows[: size + 1]), size, "after", "name")


def _cut(request: HttpRequest, held: list[M], size: int, key: str, field: str) -> tuple[list[M], str]:
    if len(held) <= size:
        return held, ""
    kept = {name: value for name, value in request.GET.items() if name not in {key, "part"}}
    return held[:size], "?" + urlencode({**kept, key: getattr(held[size - 1], field)})
