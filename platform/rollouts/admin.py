"""Rollouts in Django's admin: to be looked at, and promoted, paused and aborted by the same actions as everywhere."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin import ReadOnly
from accounts.permissions import actor_of
from inference.errors import SerinusError
from rollouts import actions as doing
from rollouts.models import Reading, Rollout, RolloutEvent, SavedPlan

FROM_HERE = "from the admin"


@admin.register(Rollout)
class RolloutAdmin(ReadOnly):
    list_display = (
        "endpoint_name",
        "team",
        "stable",
        "candidate",
        "plan_name",
        "phase",
        "reason",
        "weight_bp",
        "created_at",
    )
    list_filter = ("phase", "reason")
    search_fields = ("endpoint_name", "creator")
    list_select_related = ("team", "stable__model", "candidate__model")
    exclude = ("fence", "lease_owner", "lease_until")
    actions = ("promote", "pause", "abort")
    show_full_result_count = False

    @admin.action(description="Promote to the next step", permissions=["view"])
    def promote(self, request: HttpRequest, rows: QuerySet[Rollout]) -> None:
        self._each(request, rows, doing.promote, "promoted")

    @admin.action(description="Pause", permissions=["view"])
    def pause(self, request: HttpRequest, rows: QuerySet[Rollout]) -> None:
        self._each(request, rows, doing.pause, "paused")

    @admin.action(description="Abort: all traffic back to the stable version", permissions=["view"])
    def abort(self, request: HttpRequest, rows: QuerySet[Rollout]) -> None:
        self._each(request, rows, doing.abort, "aborted")

    def _each(self, request: HttpRequest, rows: QuerySet[Rollout], do: Callable[..., Rollout], said: str) -> None:
        """Each on its own, so that one refusal does not undo the others."""
        for row in rows:
            was_over = not row.is_active
            try:
                do(rollout=row, actor=actor_of(request), reason=FROM_HERE)
            except SerinusError as error:
                self.message_user(request, f"{row}: {error.message}", messages.ERROR)
            else:
                told = f"{row} has ended already." if was_over else f"{row} is {said}."
                self.message_user(request, told, messages.WARNING if was_over else messages.SUCCESS)


@admin.register(RolloutEvent)
class EventAdmin(ReadOnly):
    list_display = ("at", "rollout", "seq", "kind", "reason", "actor", "phase_after", "words")
    list_filter = ("kind", "reason", "actor_kind")
    list_select_related = ("rollout__stable__model", "rollout__candidate__model")
    show_full_result_count = False


@admin.register(SavedPlan)
class PlanAdmin(ReadOnly):
    list_display = ("name", "number", "team", "creator", "created_at")
    list_select_related = ("team",)


@admin.register(Reading)
class ReadingAdmin(ReadOnly):
    list_display = ("at", "rollout", "weight_bp", "verdict")
    list_filter = ("verdict",)
    list_select_related = ("rollout__stable__model", "rollout__candidate__model")
    show_full_result_count = False
