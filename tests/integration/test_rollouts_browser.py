"""Chromium starts a rollout, watches it move by itself, approves it, aborts another; pictures in every shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.db import connection

from accounts.models import Membership, Role
from rollouts import plans
from rollouts.actions import abort, extend
from rollouts.models import Reading, Rollout
from rollouts.plans import Analyze, Approve, Plan, SetWeight
from telemetry.models import StoredSample
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import Cast, make_cast
from tests.support.rollout_show import begin, controller, judged, tick_until, traffic
from tests.support.rollouts import PASS, drive, stage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]
PASSWORD = "a long password of mine"
OWNER, DEVELOPER = ("owner", PASSWORD), ("developer", PASSWORD)
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
SHAPES = {
    "light": {"viewport": {"width": 1360, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1360, "height": 860}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}
RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(5000), Analyze(), SetWeight(10_000)])
ASKS = Plan("asks", [SetWeight(2500), Approve("operator"), SetWeight(10_000)])
T = TypeVar("T")


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> Cast:
    from accounts import wakeups

    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright's loop runs in the test's own thread
    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)
    found = make_cast()
    for person in (found.owner, found.developer):
        person.set_password(PASSWORD)
        person.save()
    Membership.objects.create(user=found.developer, team=found.blue, role=Role.VIEWER)
    return found


@pytest.fixture
def url(cast: Cast) -> Iterator[str]:
    with console_server() as found:
        yield found


def apart(work: Callable[[], T]) -> T:
    """As the control worker does, in a thread without a loop."""

    def closing() -> T:
        try:
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(closing).result(60)


def shown(browser: Any, url: str, paths: dict[str, str], shots: Path, who: tuple[str, str] = DEVELOPER) -> list[Any]:
    """Every page in every shape: pictures, and what axe, the console and the width say against them."""
    troubles: list[Any] = []
    for name, options in SHAPES.items():
        visitor = Visitor(browser, url, bypass_csp=True, **options).log_in(*who)
        for place, path in paths.items():
            visitor.page.goto(path)
            visitor.page.wait_for_load_state("networkidle")
            visitor.page.screenshot(path=shots / f"{place}-{name}.png", full_page=True)
            if visitor.too_wide_px > 0:
                troubles.append((place, name, "too wide", visitor.too_wide_px))
            found = Axe().run(visitor.page, options=RULES).response["violations"]
            troubles += [(place, name, one["id"], one["nodes"][0]["html"][:300]) for one in found]
        troubles += visitor.troubles
        visitor.context.close()
    return troubles


def ended(cast: Cast, rollout: Rollout) -> None:
    abort(rollout=rollout, actor=cast.actor("developer"), reason="too many errors")
    ticker, _, clock = controller()
    drive(rollout, ticker, clock)


def test_a_rollout_in_every_shape(cast: Cast, url: str, tmp_path: Path) -> None:
    endpoint, _, candidate = stage(cast.actor("developer"), of=cast.red, replicas=2)
    ticker, _, _ = controller()
    going = tick_until(begin(endpoint, candidate, RAMP, cast.actor("developer")), ticker, "progressing", step=1)
    traffic(going, seconds=150, errors=0.004)
    judged(going)
    shots = screenshots(tmp_path)
    place = f"/rollouts/{going.pk}/"
    with chromium() as browser:
        troubles = shown(
            browser,
            url,
            {"rollout": place, "rollouts": "/rollouts/", "overview": "/", "endpoint": "/endpoints/digits/"},
            shots,
        )
        StoredSample.objects.all().delete()
        Reading.objects.all().delete()
        traffic(going, seconds=150, errors=0.08)
        judged(going)
        apart(lambda: ended(cast, going))
        assert Rollout.objects.get().phase == "rolled_back"
        new = "/endpoints/digits/rollouts/new/?plan=cautious"
        troubles += shown(browser, url, {"rollout-aborted": place, "rollout-new": new, "plans": "/plans/"}, shots)
    assert troubles == []


def test_it_is_started_watched_and_approved(cast: Cast, url: str, tmp_path: Path) -> None:
    """1. Started from the endpoint's page, with a plan written by hand. 2. It moves by itself, and the page with it.
    3. A colleague approves it. 4. It ends, and can be taken back.
    """
    shots = screenshots(tmp_path)
    stage(cast.actor("developer"), of=cast.red)
    ticker, word, clock = controller()
    with chromium() as browser:
        starter = Visitor(browser, url, viewport={"width": 1360, "height": 860}).log_in(*DEVELOPER)
        page = starter.page
        page.goto("/endpoints/digits/")
        page.get_by_role("link", name="Roll out another version").click()
        page.get_by_text("It can start").wait_for()
        page.get_by_text("Write a plan").click()
        page.get_by_label("Plan as JSON").fill('{"name": "mine"')
        page.get_by_label("Plan", exact=True).select_option("own")
        page.locator("#plan-error", has_text="line 1, column").wait_for()
        page.get_by_label("Plan as JSON").fill(json.dumps(plans.as_json(ASKS)))
        page.get_by_text("waits for 1 approval", exact=True).wait_for()
        page.screenshot(path=shots / "rollout-own-plan.png", full_page=True)
        page.get_by_label("Reason").fill("the new training data")
        page.get_by_role("button", name="Start the rollout").click()
        page.get_by_text("Version 2 is on its way").wait_for()
        going = Rollout.objects.get()
        page.locator("[data-connection][data-state=open]").wait_for()
        apart(lambda: tick_until(going, ticker, "awaiting_approval", step=1))
        page.get_by_text("0 of 1 approval").wait_for()
        page.get_by_text("version 2 0 % → 25 %").wait_for()
        assert page.get_by_role("button", name="Approve").count() == 0
        colleague = Visitor(browser, url, viewport={"width": 360, "height": 740}).log_in(*OWNER)
        other = colleague.page
        other.goto(f"/rollouts/{going.pk}/")
        other.get_by_label("Reason").fill("looks good")
        other.get_by_role("button", name="Approve").click()
        other.locator("dialog").get_by_text("The rollout then goes on by itself").wait_for()
        other.screenshot(path=shots / "rollout-approve-narrow.png")
        other.locator("dialog").get_by_role("button", name="Approve").click()
        other.get_by_text("Your approval is noted").wait_for()
        page.get_by_text("Approved by owner (1 of 1). looks good").first.wait_for()
        word.said = PASS
        apart(lambda: drive(going, ticker, clock))
        page.get_by_role("button", name="Go back to version 1").wait_for()
        page.screenshot(path=shots / "rollout-succeeded.png", full_page=True)
        assert Rollout.objects.get().phase == "succeeded"
        assert starter.troubles == colleague.troubles == []


def test_it_is_paused_promoted_and_aborted_with_the_effect_in_numbers(cast: Cast, url: str, tmp_path: Path) -> None:
    endpoint, _, candidate = stage(cast.actor("developer"), of=cast.red)
    ticker, _, _ = controller()
    going = tick_until(begin(endpoint, candidate, RAMP, cast.actor("developer")), ticker, "progressing", step=1)
    traffic(going, seconds=60, per_s=50)
    with chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 1360, "height": 860}).log_in(*DEVELOPER)
        page = visitor.page
        page.goto(f"/rollouts/{going.pk}/")
        page.locator("[data-connection][data-state=open]").wait_for()
        dialog = page.locator("dialog")
        page.get_by_label("Reason").fill("lunch")
        page.get_by_role("button", name="Pause").click()
        dialog.get_by_text("Version 2 keeps 10 %").wait_for()
        # Others go on meanwhile: the page is renewed when the question is answered, not under it.
        apart(lambda: extend(rollout=going, actor=cast.actor("owner"), reason="more time"))
        page.wait_for_timeout(2500)  # two polls and what they would have fetched
        assert page.get_by_text("more time").count() == 0
        dialog.get_by_role("button", name="Pause").click()
        page.get_by_text("It is paused").wait_for()
        page.get_by_text("lunch").first.wait_for()
        page.get_by_text("more time").first.wait_for()
        page.get_by_role("button", name="Promote step").click()
        dialog.get_by_text("Moves 40 % = about").wait_for()
        page.screenshot(path=screenshots(tmp_path) / "rollout-promote.png")
        dialog.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Abort now").click()
        dialog.get_by_text("requests/s back to version 1, within a second").wait_for()
        dialog.get_by_role("button", name="Abort now").click()
        page.get_by_text("It is aborted").first.wait_for()
        going.refresh_from_db()
        assert (going.phase, going.weight_bp) == ("aborting", 0)
        assert visitor.troubles == []
