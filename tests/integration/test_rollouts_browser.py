"""Chromium starts a rollout, watches it move by itself, approves it, aborts another; pictures in every shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.db import connection

from accounts.models import Membership, Role
from rollouts.actions import abort
from rollouts.models import Rollout
from rollouts.plans import Analyze, Approve, Plan, SetWeight
from telemetry.models import StoredSample
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import Cast, make_cast
from tests.support.rollout_show import begin, controller, judged, tick_until, traffic
from tests.support.rollouts import drive, stage

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
        troubles = shown(browser, url, {"rollout": place, "rollouts": "/rollouts/"}, shots)
        StoredSample.objects.all().delete()
        traffic(going, seconds=150, errors=0.08)
        judged(going)
        apart(lambda: ended(cast, going))
        assert Rollout.objects.get().phase == "rolled_back"
        troubles += shown(browser, url, {"rollout-aborted": place}, shots)
    assert troubles == []
