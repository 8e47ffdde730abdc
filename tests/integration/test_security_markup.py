"""H5: whatever people, models and hosts call their things, no page makes markup of it. Every page of the route table,
over rows in which every text that somebody else chooses is an attack.
"""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from django.db.models import CharField, TextField
from django.test import Client
from django.utils import timezone

from accounts.audit import record
from accounts.models import ApiKey, Team, User
from endpoints.models import Endpoint
from fleet.models import Deployment, Device, Host, Replica
from inference.protocol.generation import PLATFORM
from jobs.models import Batch, File
from registry.models import AliasChange, GoldenInput, Model, Upload, ValidationRun, Version
from rollouts import actions as rollouts
from rollouts.models import Rollout, RolloutEvent, Webhook, WebhookDelivery
from rollouts.plans import Approve, Plan, PlanSettings, SetWeight
from rollouts.webhooks import create_webhook
from telemetry.models import ShadowDiff
from tests.support.batches import begin, line
from tests.support.cast import Cast
from tests.support.rollouts import stage
from tests.support.routes import ROUTES, fill
from tests.support.showroom import IMAGE, furnish, report, version

ATTACK = "\"'><img src=x onerror=alert(1)></script><script>alert(1)</script><svg/onload=alert(1)>{{7*7}}[a](javascript:alert(1))"
SHORT = "<b onclick=a>"
PARTS = ("", "?part=overview", "?part=list", "?part=version", "?part=replicas", "?part=fleet",
         "?part=rollout", "?part=judge", "?part=events", "?part=rollouts")  # fmt: skip
# Columns that code and not people choose, or whose form a rule fixes: slugs, states, digests.
FIXED = {"name", "username", "password", "role", "access", "status", "state", "phase", "wanted", "digest", "sha256",
         "salt", "id", "kind", "device", "address", "route_address", "boot", "wanted_alias", "tier", "format"}  # fmt: skip
ROWS = (User, Model, GoldenInput, Host, Device, Deployment, Replica, Upload, Endpoint, Team)


class Markup(HTMLParser):
    """What a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in {"iframe", "object", "embed", "base", "style"} or given.get("src") == "x":
            self.found.append(f"<{tag}>")
        if tag == "script" and "src" not in given and given.get("type") != "application/json":
            self.found.append("an inline script")
        for name, value in given.items():
            word = (value or "").strip().lower()
            if name.startswith("on") or name == "style" or word.startswith(("javascript:", "data:text", "vbscript:")):
                self.found.append(f"<{tag} {name}={word[:30]}>")


def poison(rows: Any) -> None:
    """Every text of these rows that somebody may choose."""
    for field in rows.model._meta.get_fields():
        if isinstance(field, CharField | TextField) and field.name not in FIXED and not field.choices:
            rows.update(**{field.name: ATTACK[: field.max_length or 1000] if (field.max_length or 99) > 60 else SHORT})


def hostile_version(cast: Cast) -> Version:
    """Its author chose the names of inputs, outputs, labels and files, and the texts of its report."""
    model = Model.objects.get(name="digits")
    tensor = {"name": ATTACK, "datatype": "FP32", "shape": [-1, 4]}
    signature = IMAGE | {"inputs": [tensor], "outputs": [tensor], "labels": [ATTACK], "platform": SHORT}
    checks = [{"name": ATTACK, "state": "failed", "message": ATTACK, "remedy": ATTACK, "ms": 1.0}]
    files = [{"path": ATTACK, "size_bytes": 1, "sha256": "a" * 64}]
    return version(
        model, cast, signature=signature, manifest={"files": files}, reason=ATTACK, remedy=ATTACK, creator=ATTACK[:200],
        approved_by=ATTACK[:200], settings={ATTACK: ATTACK, "task": ATTACK}, report=report() | {"checks": checks, "host": ATTACK},
    )  # fmt: skip


def hostile_language(cast: Cast) -> Version:
    """Its author chose the names of its architecture and formats, and the template; it serves at an endpoint."""
    model = Model.objects.get(name="minilm")
    seen = dict.fromkeys(("architecture", "stored", "dtype", "quantization", "path"), ATTACK)
    seen |= {"parameters": 5, "layers": 1, "context": 9, "vocabulary": 7, "perplexity": 2.0, "perplexity_plain": 1.0}
    measured = report()
    measured["measurements"] |= {"language": seen}
    made = version(model, cast, signature={"inputs": [], "outputs": [], "platform": PLATFORM}, report=measured,
                   settings={"generation": {"chat_template": ATTACK}})  # fmt: skip
    Endpoint.objects.get(name="minilm").variants.create(version=made, weight_bp=0)
    return made


def hostile_batch(cast: Cast) -> Batch:
    batch = begin(cast.actor("owner"), [line(0)], team=cast.red)
    troubles = [{"code": ATTACK, "line": 1, "message": ATTACK, "param": ATTACK}]
    File.objects.update(filename=ATTACK[:255], owner=ATTACK[:200])
    Batch.objects.update(model=ATTACK[:200], owner=ATTACK[:200], metadata={ATTACK: ATTACK}, errors=troubles)
    return batch


def hostile_rollout(cast: Cast) -> Rollout:
    """Whoever started it chose its reason and its plan's words; the rest comes from a gateway or a model."""
    endpoint, _, candidate = stage(cast.actor("owner"), name="moving", of=cast.red)
    settings = PlanSettings(guardrails=[], unguarded=ATTACK)
    plan = Plan("mine", [SetWeight(100), Approve("operator"), SetWeight(10_000)], settings, ATTACK)
    rollouts.save_plan(team=cast.red, plan=plan, actor=cast.actor("owner"))
    begun = rollouts.start(endpoint=endpoint, version=candidate, plan=plan, actor=cast.actor("owner"), reason=ATTACK)
    finding = {
        "metric": ATTACK, "stable": 0.1, "canary": 0.2, "difference": 0.1, "lower": 0.0, "upper": 0.3, "margin": 0.002, "ceiling": 0.005,
        "verdict": ATTACK, "n_requests": 9, "n_units": 3, "needed_requests": 5, "eta_s": 3.0, "kind": "signal", "direction": "increase",
    }  # fmt: skip
    judgement = {
        "verdict": "hold",
        "words": ATTACK,
        "srm_p": 0.5,
        "canary_requests": 9,
        "stable_requests": 9,
        "findings": [finding],
    }
    smoke = {
        "passed": False,
        "words": ATTACK,
        "cases": [{"name": ATTACK, "passed": False, "words": ATTACK, "took_ms": 1.0}],
    }
    preflight = {
        "compatibility": {"kind": SHORT, "differences": [ATTACK]}, "capacity": {"words": ATTACK}, "duration": {"words": ATTACK},
        "golden_inputs": 1, "warnings": [ATTACK], "blockers": [ATTACK],
    }  # fmt: skip
    approvals = [{"by": ATTACK, "at": "2026-01-01T00:00:00+00:00"}]
    Rollout.objects.filter(pk=begun.pk).update(
        phase="awaiting_approval", step=1, words=ATTACK, judgement=judgement, smoke=smoke, preflight=preflight, approvals=approvals,
        override=ATTACK, creator=ATTACK[:200],
    )  # fmt: skip
    RolloutEvent.objects.create(
        rollout=begun, seq=99, at=timezone.now(), actor_kind="user", actor=ATTACK[:200], kind="step", reason="step", words=ATTACK,
        phase_before="smoke", phase_after="progressing", evidence={ATTACK: ATTACK, "findings": [finding]},
    )  # fmt: skip
    ShadowDiff.objects.create(
        source="g", sequence=1, at=timezone.now(), endpoint="moving", stable=1, candidate=2, distance=1.0, is_drift=True,
        output=ATTACK[:200], kind="exact", detail=ATTACK[:200], request=ATTACK, stable_ms=1.0, candidate_ms=1.0,
    )  # fmt: skip
    return begun


@pytest.fixture
def values(cast: Cast) -> dict[str, Any]:
    rollout = hostile_rollout(cast)
    furnish(cast, traffic=False)
    made = hostile_version(cast)
    running = ValidationRun.objects.get()
    ValidationRun.objects.update(
        checks=[{"name": ATTACK, "state": "running", "message": ATTACK, "remedy": "", "ms": 0}]
    )
    converted = {
        "state": "done", "file": {"path": ATTACK, "size_bytes": 1, "sha256": ATTACK}, "next": [ATTACK], "tensor_count": 1,
        "tensors": [{"name": ATTACK, "dtype": ATTACK, "shape": [1]}],
    }  # fmt: skip
    pickled = Version.objects.get(model__name="digits", number=3)
    ValidationRun.objects.create(version=pickled, purpose="convert", state="done", result=converted)
    endpoint = Endpoint.objects.get(name="digits")
    endpoint.variants.update(weight_bp=0)
    endpoint.variants.create(version=made, weight_bp=10_000)
    Deployment.objects.create(version=made, replicas=1)
    AliasChange.objects.create(model=made.model, name=SHORT, to_version=made, actor=ATTACK[:200], reason=ATTACK[:500])
    for number in range(3):
        record(cast.actor("owner"), SHORT, SHORT, f"{ATTACK[:150]}{number}", team=cast.red, before={ATTACK: ATTACK},
               after={ATTACK: [ATTACK], "x": {ATTACK: ATTACK}}, reason=ATTACK)  # fmt: skip
    language = hostile_language(cast)
    batch = hostile_batch(cast)
    webhook, _ = create_webhook(actor=cast.actor("owner"), team=cast.red, url="https://hooks.example.com/")
    Webhook.objects.update(url=f"https://x/{ATTACK}", events=[ATTACK, SHORT], creator=ATTACK[:200])
    WebhookDelivery.objects.create(webhook=webhook, event=SHORT, body=ATTACK, response=ATTACK, next_at=timezone.now())
    for row in ROWS:
        poison(row.objects.all())
    ApiKey.objects.update(name=ATTACK[:100])
    return {
        "name": "digits", "number": made.number, "model": "digits", "alias": "champion", "key": ApiKey.objects.first(),
        "username": "teammate", "webhook": webhook.pk, "rollout": rollout.pk, "job": batch.public_id, "language": language.number, "running": running.version.number,
        "replica": Replica.objects.filter(deployment__version__model__name="digits", phase="backoff")[0].pk,
    }  # fmt: skip


# Opaque bytes under a fixed name, never markup: see registry.downloads.
DOWNLOADS = {"/models/<name>/versions/<number>/converted/"}
PAGES = sorted(
    route for route, entry in ROUTES.items() if entry.page and "GET" in entry.methods and route not in DOWNLOADS
)


def test_every_page_shows_it_as_text(cast: Cast, values: dict[str, Any]) -> None:
    client, shown = Client(), set()
    client.force_login(cast.root, backend="accounts.login.LimitedBackend")
    for route in PAGES:
        numbers = (values["number"], 3, values["running"], 5) if "<number>" in route else (0,)
        for part in PARTS:
            for number in numbers:
                path = fill(route, values | {"number": number or values["number"]}) + part
                query = {"user": "teammate", "team": "red", "verb": "deploy"} if route == "/people/why/" else None
                response = client.get(path, query) if query else client.get(path)
                assert response.status_code in {200, 302, 404} - ({404} if number == values["number"] else set()), path
                if response["Content-Type"].startswith("text/html"):
                    text = response.content.decode()
                    assert Markup(text).found == [], path
                    assert "49[a]" not in text, f"{path}: a template was run"
                    assert "script-src 'self'" in response["Content-Security-Policy"]
                    if "&lt;img src=x" in text or "\\u003Cimg" in text:
                        shown.add(route)
                else:
                    assert response["X-Content-Type-Options"] == "nosniff", path
    assert shown >= {"/audit/", "/endpoints/<name>/", "/fleet/", "/keys/", "/models/<name>/",
                     "/models/<name>/versions/<number>/", "/people/",
                     "/rollouts/", "/rollouts/<rollout>/", "/plans/"}, shown  # fmt: skip


def test_a_language_models_pages_show_it_as_text(cast: Cast, values: dict[str, Any]) -> None:
    client = Client()
    client.force_login(cast.root, backend="accounts.login.LimitedBackend")
    for path in (
        f"/models/minilm/versions/{values['language']}/",
        "/endpoints/minilm/",
        "/models/minilm/",
        "/playground/",
    ):
        text = client.get(path).content.decode()
        assert Markup(text).found == [], path
        assert "49[a]" not in text, f"{path}: a template was run"
    assert "&lt;img src=x" in client.get(f"/models/minilm/versions/{values['language']}/").content.decode()
    assert "minilm" in client.get("/playground/").content.decode()


def test_messages_about_bad_input_are_text_too(cast: Cast, values: dict[str, Any]) -> None:
    client = Client()
    client.force_login(cast.root, backend="accounts.login.LimitedBackend")
    forms = {
        "/models/digits/aliases/": {"alias": ATTACK, "version": "1"},
        "/endpoints/digits/weights/": {"percent_1": ATTACK},
        "/people/new/": {"username": ATTACK, "password": "x"},
        "/people/teams/new/": {"name": ATTACK},
        "/people/member/": {"username": ATTACK, "team": "red", "role": "viewer"},
        "/keys/new/": {"name": "", "team": "red", "role": ATTACK},
        f"/models/digits/versions/{values['number']}/deploy/": {"endpoint": ATTACK, "replicas": "1"},
        "/login/": {"username": ATTACK, "password": "x"},
    }
    for path, data in forms.items():
        page = client.post(path, data, follow=True)
        assert Markup(page.content.decode()).found == [], path
    for path in (
        f"/audit/?verb={ATTACK}&actor={ATTACK}",
        f"/models/?q={ATTACK}",
        f"/upload/?model={ATTACK}",
        f"/{ATTACK}",
    ):
        assert Markup(client.get(path).content.decode()).found == [], path


def test_the_admin_shows_it_as_text(cast: Cast, values: dict[str, Any]) -> None:
    from django.contrib import admin

    client = Client()
    client.force_login(cast.root, backend="accounts.login.LimitedBackend")
    for model in admin.site._registry:
        place = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        rows = [place, *[f"{place}{row.pk}/change/" for row in model.objects.all()[:3]]]
        for path in rows:
            page = client.get(path, follow=True)
            assert page.status_code in {200, 403, 404}, path
            acts = [
                one for one in Markup(page.content.decode()).found if "src=x" in one or "alert" in one or "<b>" in one
            ]
            assert acts == [], path


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "<script>alert(1)</script>",
        "<b onclick=a>",
        "<a href=javascript:a>",
        "<p style=a>",
    ],
)
def test_the_check_sees_markup(text: str) -> None:
    assert Markup(text).found
