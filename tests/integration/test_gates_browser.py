"""Chromium makes a webhook, tries it against a real receiver, and saves a golden input from the try-it form."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.db import connection

from registry.models import GoldenInput
from rollouts.models import Webhook, WebhookDelivery
from rollouts.webhook_delivery import deliver_due
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import make_cast
from tests.support.receivers import plain, receiver
from tests.support.showroom import furnish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]
OWNER = ("owner", "a long password of mine")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
SHAPES = {
    "light": {"viewport": {"width": 1360, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1360, "height": 860}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.fixture
def url(settings: Any, monkeypatch: Any) -> Iterator[str]:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright's loop runs in the test's own thread
    settings.WEBHOOKS_ALLOW_PRIVATE = True
    cast = make_cast()
    furnish(cast)
    cast.owner.set_password(OWNER[1])
    cast.owner.save()
    with console_server() as found:
        yield found


def deliver() -> int:
    """As the control worker does, in a thread without a loop."""

    def work() -> int:
        try:
            return deliver_due()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(30)


def test_a_webhook_is_made_tried_and_watched(url: str, tmp_path: Path) -> None:
    shots = screenshots(tmp_path)
    with chromium() as browser, receiver() as there:
        visitor = Visitor(browser, url, viewport={"width": 1360, "height": 860}).log_in(*OWNER)
        page = visitor.page
        page.get_by_role("link", name="Webhooks").click()
        page.get_by_text("No webhook yet").wait_for()
        page.get_by_label("Address").fill(f"{there.url}/hook")
        page.get_by_text("choose events").click()
        page.get_by_label("rollout.succeeded").check()
        page.get_by_role("button", name="Add webhook").click()
        secret = page.locator("#secret").inner_text()
        page.get_by_role("button", name="Send a test").click()
        page.get_by_text("A test is on its way").wait_for()
        page.get_by_text("Pending").wait_for()
        there.answer = lambda handler: plain(handler, 500, b"<b>not today</b>")
        assert deliver() == 1
        page.get_by_text("<b>not today</b>").wait_for()
        page.screenshot(path=shots / "webhook-pending.png", full_page=True)
        there.answer = lambda handler: plain(handler, 200, b"welcome")
        WebhookDelivery.objects.update(next_at=Webhook.objects.get().created_at)
        assert deliver() == 1
        page.get_by_text("Delivered").wait_for()
        assert there.got[1].is_signed(secret)
        page.get_by_role("button", name="Switch off").click()
        page.locator("dialog").get_by_role("button", name="Switch off").click()
        page.get_by_text("It is told of nothing any more").wait_for()
        page.goto("/webhooks/")
        assert secret not in page.content()
        assert visitor.troubles == []
        troubles = []
        for name, options in SHAPES.items():
            other = Visitor(browser, url, bypass_csp=True, **options).log_in(*OWNER)
            for place, path in {"webhooks": "/webhooks/", "webhook": f"/webhooks/{Webhook.objects.get().pk}/"}.items():
                other.page.goto(path)
                other.page.screenshot(path=shots / f"{place}-{name}.png", full_page=True)
                assert other.too_wide_px <= 0, (place, name)
                found = Axe().run(other.page, options=RULES).response["violations"]
                troubles += [(place, name, one["id"], one["nodes"][0]["html"]) for one in found]
            troubles += other.troubles
        assert troubles == []


def test_an_answer_is_saved_as_golden_input(url: str, tmp_path: Path) -> None:
    outputs = [{"name": "scores", "datatype": "FP32", "shape": [1, 10], "data": [0.1] * 10}]
    told = {"response": {"model_name": "digits", "model_version": "1", "outputs": outputs}, "latency_ms": 2.5,
            "timeline": [], "version": "1", "arm": "primary", "request_id": "r"}  # fmt: skip
    with chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 360, "height": 740}).log_in(*OWNER)
        page = visitor.page
        page.route("**/endpoints/digits/try/", lambda route: route.fulfill(json=told))
        page.goto("/endpoints/digits/")
        page.wait_for_selector("[data-island=try-it][data-awake]")
        page.locator("[data-island=try-it] [data-send]").click()
        page.get_by_role("button", name="Save as golden input").click()
        page.get_by_text("Saved as golden-1.").wait_for()
        page.screenshot(path=screenshots(tmp_path) / "golden-saved.png", full_page=True)
        row = GoldenInput.objects.get(name="golden-1")
        assert (row.outputs, row.source_version, row.created_by) == (outputs, 1, "owner")
        assert [one["name"] for one in row.inputs] == ["pixels"]
        page.goto("/models/digits/")
        page.get_by_role("button", name="Remove golden input golden-1").click()
        page.locator("dialog").get_by_role("button", name="Remove").click()
        page.get_by_text("The golden input is removed").wait_for()
        assert not GoldenInput.objects.filter(name="golden-1").exists()
        page.screenshot(path=screenshots(tmp_path) / "model-golden.png", full_page=True)
        assert visitor.too_wide_px <= 0
        assert visitor.troubles == []
