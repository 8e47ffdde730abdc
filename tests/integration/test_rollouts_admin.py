"""Rollouts in Django's admin: listed, read-only, and moved by the same audited actions."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import AuditEntry
from rollouts.models import Rollout
from rollouts.plans import Analyze, Plan, SetWeight
from tests.support.cast import Cast, make_cast
from tests.support.rollout_show import begin, controller, judged, tick_until, traffic
from tests.support.rollouts import drive, stage

pytestmark = pytest.mark.django_db
LIST = "/admin/rollouts/rollout/"
RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(10_000)])


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> Cast:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)
    return make_cast()


@pytest.fixture
def going(cast: Cast) -> Rollout:
    endpoint, _, candidate = stage(cast.actor("developer"), of=cast.red)
    ticker, _, _ = controller()
    return tick_until(begin(endpoint, candidate, RAMP, cast.actor("developer")), ticker, "progressing", step=1)


@pytest.fixture
def root(cast: Cast) -> Client:
    client = Client()
    client.force_login(cast.root, backend="accounts.login.LimitedBackend")
    return client


def act(client: Client, name: str, rollout: Rollout) -> str:
    response = client.post(LIST, {"action": name, "_selected_action": [str(rollout.pk)]}, follow=True)
    assert response.status_code == 200
    return str(response.content.decode())


@pytest.mark.parametrize(
    ("name", "phase", "step", "verb"),
    [("promote", "progressing", 2, "promote_rollout"), ("pause", "paused", 1, "pause_rollout"), ("abort", "aborting", 1, "abort_rollout")],
)  # fmt: skip
def test_an_action_is_the_real_one(going: Rollout, root: Client, name: str, phase: str, step: int, verb: str) -> None:
    html = act(root, name, going)
    assert "Digits: 1 -&gt; 2 is" in html
    going.refresh_from_db()
    assert (going.phase, going.step) == (phase, step)
    entry = AuditEntry.objects.get(verb=verb)
    assert (entry.actor, entry.reason) == ("root", "from the admin")


def test_a_refusal_is_a_message(cast: Cast, going: Rollout, root: Client) -> None:
    act(root, "abort", going)
    ticker, _, clock = controller()
    drive(going, ticker, clock)
    events = going.events.count()
    assert "a rollout that has ended cannot be promoted" in act(root, "promote", going)
    assert "has ended already" in act(root, "abort", going)
    assert going.events.count() == events


def test_rows_are_listed_and_read_only(going: Rollout, root: Client) -> None:
    traffic(going, seconds=30)
    judged(going, looks=2)
    rows = {"rollout": going.pk, "rolloutevent": going.events.first().pk, "reading": going.readings.first().pk}  # type: ignore[union-attr]
    for name, pk in rows.items():
        place = f"/admin/rollouts/{name}/"
        assert root.get(place).status_code == 200
        assert root.get(f"{place}{pk}/change/").status_code == 200
        assert root.post(f"{place}{pk}/change/", {"phase": "succeeded"}).status_code == 403
        assert root.post(f"{place}{pk}/delete/", {"post": "yes"}).status_code == 403
        assert root.get(f"{place}add/").status_code == 403
    assert root.get("/admin/rollouts/savedplan/").status_code == 200
    going.refresh_from_db()
    assert going.phase == "progressing"


def test_others_do_not_get_in(cast: Cast, going: Rollout) -> None:
    client = Client()
    client.force_login(cast.owner, backend="accounts.login.LimitedBackend")
    assert client.post(LIST, {"action": "abort", "_selected_action": [str(going.pk)]}).status_code in {302, 403}
    going.refresh_from_db()
    assert going.phase == "progressing"
