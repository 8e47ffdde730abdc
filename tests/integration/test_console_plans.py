"""New rollouts with their preview, plans, the endpoint's section, the overview's strip."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry
from console.live import feed_of
from console.rollout_plans import templates, timeline
from endpoints.models import Endpoint
from registry.models import Version
from rollouts import actions, plans
from rollouts.judging import settings_of
from rollouts.models import Rollout, SavedPlan
from rollouts.plans import Analyze, Plan, SetWeight
from rollouts.timeline import estimate
from tests.support.cast import Cast, make_cast
from tests.support.fleet_cast import SIGNATURE, version
from tests.support.rollout_show import begin, controller, tick_until
from tests.support.rollouts import PASS, Word, drive, stage

pytestmark = pytest.mark.django_db
RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(10_000)])
NEW, PREVIEW, START = (f"/endpoints/digits/rollouts/{name}/" for name in ("new", "preview", "start"))
MINE = json.dumps(plans.as_json(Plan("mine", [SetWeight(2000), SetWeight(10_000)])))


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def cast() -> Cast:
    return make_cast()


@pytest.fixture
def staged(cast: Cast) -> tuple[Endpoint, Version, Version]:
    return stage(cast.actor("developer"), of=cast.red)


def client_of(person: Any) -> Client:
    client = Client()
    client.force_login(person, backend="accounts.login.LimitedBackend")
    return client


def told(person: Any, path: str, data: dict[str, Any] | None = None, *, status: int = 200) -> str:
    client = client_of(person)
    response = client.get(path) if data is None else client.post(path, data)
    assert response.status_code == status, (path, response.status_code)
    return str(response.content.decode())


def test_the_form_offers_other_ready_versions_and_all_plans(cast: Cast, staged: Any) -> None:
    version("digits", of=cast.red, status="rejected")
    actions.save_plan(team=cast.red, plan=plans.read(json.loads(MINE)), actor=cast.actor("developer"))
    html = told(cast.developer, NEW)
    assert re.findall(r'<option value="(\d+)"', html) == ["2"]
    for name in plans.TEMPLATES:
        assert f'<option value="{name}"' in html
    assert "mine (no. 1)" in html
    assert len(html.encode()) < 60_000


def test_the_preview_says_what_would_happen(cast: Cast, staged: Any) -> None:
    before = AuditEntry.objects.count()
    html = told(cast.developer, PREVIEW, {"version": "2", "plan": "standard"})
    assert "It can start" in html
    assert "Compatible" in html
    assert "fit beside the stable version" in html
    assert "There is no traffic now" in html
    assert html.count("<rect") == len(plans.TEMPLATES["standard"].steps)
    assert not Rollout.objects.exists()
    assert AuditEntry.objects.count() == before


def test_a_breaking_signature_needs_a_reason(cast: Cast, staged: Any) -> None:
    broken = {**SIGNATURE, "inputs": [{"name": "z", "datatype": "FP32", "shape": [-1, 2]}]}
    version("digits", of=cast.red, signature=broken)
    wish = {"version": "3", "plan": "fast"}
    html = told(cast.developer, PREVIEW, wish)
    assert "It cannot start" in html
    assert "The signature breaks clients" in html
    assert "input &#x27;x&#x27;" in html
    refused = told(cast.developer, START, wish, status=400)
    assert "Give a reason if that is meant" in refused
    assert not Rollout.objects.exists()
    assert "and that is meant" in told(cast.developer, PREVIEW, wish | {"reason": "clients are ready"})
    response = client_of(cast.developer).post(START, wish | {"reason": "clients are ready"})
    begun = Rollout.objects.get()
    assert response["Location"] == f"/rollouts/{begun.pk}/"
    assert begun.override == "clients are ready"
    assert "clients are ready" in told(cast.teammate, f"/rollouts/{begun.pk}/")


def test_ones_own_plan_is_read_where_it_is_written(cast: Cast, staged: Any) -> None:
    wish = {"version": "2", "plan": "own"}
    wrong = told(cast.developer, PREVIEW, wish | {"own": '{"name": "mine", "steps": [}'})
    assert wrong.count("line 1, column 28") == 2, "in the preview and beside the box"
    falls = json.dumps(
        {"name": "m", "steps": [{"kind": "set_weight", "weight_bp": 9}, {"kind": "set_weight", "weight_bp": 1}]}
    )
    assert "weights must rise" in told(cast.developer, PREVIEW, wish | {"own": falls})
    assert "weights must rise" in told(cast.developer, START, wish | {"own": falls}, status=400)
    assert "<b>1. 20 % of the traffic</b>" in told(cast.developer, PREVIEW, wish | {"own": MINE})
    client_of(cast.developer).post(START, wish | {"own": MINE, "reason": "try"})
    assert Rollout.objects.get().plan_name == "mine"


def test_only_who_may_deploy_starts(cast: Cast, staged: Any) -> None:
    wish = {"version": "2", "plan": "fast"}
    assert client_of(cast.teammate).get(NEW).status_code == 403
    for path in (PREVIEW, START):
        assert client_of(cast.teammate).post(path, wish).status_code == 403
        assert client_of(cast.stranger).post(path, wish).status_code == 404
    assert client_of(cast.stranger).get(NEW).status_code == 404
    assert client_of(cast.developer).post(START, {"version": "77", "plan": "fast"}).status_code == 404
    assert client_of(cast.developer).post(PREVIEW, {"version": "2", "plan": "no\0ne"}).status_code == 404
    assert not Rollout.objects.exists()


@pytest.mark.parametrize("name", sorted(plans.TEMPLATES))
@pytest.mark.parametrize("rate", [0.0, 40.0])
def test_a_timeline_fills_its_picture(name: str, rate: float) -> None:
    plan = plans.TEMPLATES[name]
    spans = timeline(plan, estimate(plan, rate_per_s=rate, settings=settings_of(plan)))
    assert len(spans) == len(plan.steps)
    assert spans[-1].x + spans[-1].width == pytest.approx(100, abs=0.5)
    for one, following in pairwise(spans):
        assert following.x == pytest.approx(one.x + one.width, abs=0.05)
    assert all(one.width > 0 and one.y + one.height == pytest.approx(100) for one in spans)


def test_the_endpoints_page_leads_to_it(cast: Cast, staged: Any) -> None:
    endpoint, _, candidate = staged
    html = told(cast.developer, "/endpoints/digits/")
    assert NEW in html
    assert "Go back" not in html
    assert NEW not in told(cast.teammate, "/endpoints/digits/")
    stamp = feed_of(cast.actor("teammate"), "endpoint:digits").read()["stamps"]["rollout"]
    ticker, _, clock = controller(Word(PASS))
    going = tick_until(begin(endpoint, candidate, RAMP, cast.actor("developer")), ticker, "progressing", step=0)
    assert feed_of(cast.actor("teammate"), "endpoint:digits").read()["stamps"]["rollout"] != stamp
    html = told(cast.developer, "/endpoints/digits/")
    assert "A rollout steers this traffic" in html
    assert 'name="percent_1"' not in html
    assert f"/rollouts/{going.pk}/" in html
    assert f"/rollouts/{going.pk}/" in told(cast.teammate, "/")
    assert str(going.pk) not in told(cast.stranger, "/")
    assert drive(going, ticker, clock).phase == "succeeded"
    html = told(cast.developer, "/endpoints/digits/")
    assert "Go back to version 1" in html
    assert NEW in html
    assert "Go back to version 1" not in told(cast.teammate, "/endpoints/digits/")


def test_plans_are_listed_and_saved(cast: Cast, staged: Any) -> None:
    html = told(cast.developer, "/plans/")
    for known in templates():
        assert f"<h2>{known.plan.name}</h2>" in html
    client = client_of(cast.developer)
    for number in (1, 2):
        answer = client.post("/plans/save/", {"team": "red", "plan": MINE}, follow=True)
        assert f"saved as number {number}" in answer.content.decode()
    assert SavedPlan.objects.filter(team=cast.red, name="mine").count() == 2
    html = told(cast.teammate, "/plans/")
    assert "no. 2" in html
    assert "Save a plan" not in html
    assert "<h2>mine</h2>" not in told(cast.stranger, "/plans/")
    assert (
        "&quot;cautious&quot;"
        not in told(cast.developer, "/plans/?from=cautious").split("<textarea")[1].split("</textarea")[0]
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "line 1, column"), ('{"name": "standard", "steps": [{"kind": "set_weight", "weight_bp": 1}]}', "one of the templates"),
     ('{"name": "x", "steps": []}', "has no steps"), ("[" * 5000, "JSON"), ('{"name": "x", "steps": [{"kind": "jump"}]}', "jump")],
    ids=["cut", "template", "empty", "deep", "unknown"],
)  # fmt: skip
def test_a_wrong_plan_stays_in_its_box(cast: Cast, text: str, says: str) -> None:
    html = told(cast.developer, "/plans/save/", {"team": "red", "plan": text}, status=400)
    assert says in html.split('id="plan-error"')[1].split("</p>")[0]
    assert not SavedPlan.objects.exists()


def test_plans_of_others_cannot_be_written(cast: Cast) -> None:
    assert client_of(cast.developer).post("/plans/save/", {"team": "blue", "plan": MINE}).status_code == 404
    assert client_of(cast.teammate).post("/plans/save/", {"team": "red", "plan": MINE}).status_code == 403
