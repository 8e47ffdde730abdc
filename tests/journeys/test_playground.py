"""A newcomer's way to a chat: a GGUF file dragged into the page, checked, deployed, and talked to in the playground."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.browser import Visitor, chromium, drop, executable, screenshots
from tests.support.gguf_files import SMOLLM2_NAME, smollm2
from tests.support.house import PASSWORD, House, running_house, until
from tests.support.pasted import run_curl, run_python

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(480),
    pytest.mark.xdist_group("house"),
]
WIDE = {"width": 1360, "height": 860}
SLOW_MS = 90_000  # of a busy machine with two cores


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("talking"), SERINUS_VALIDATION_TIMEOUT_S="240") as running:
        yield running


def say(page: Any, text: str) -> Any:
    """Sends a message; the answer once it is whole."""
    place = page.locator(".turn.theirs").count()
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    answer = page.locator(".turn.theirs").nth(place)
    answer.wait_for()
    page.locator(".turn.theirs:not([aria-busy])").nth(place).wait_for(timeout=SLOW_MS)
    return answer


def figure(house: House, name: str) -> float:
    """The sum of a metric's samples at the gateway."""
    told = httpx.get(f"{house.gateway_url}/metrics", headers={"Authorization": f"Bearer {house.key}"}).text
    found = re.findall(rf"^{name}(?:_total)?{{.*}} (\S+)$", told, re.MULTILINE)
    return sum(float(one) for one in found)


def test_a_gguf_file_is_dropped_deployed_and_chats(talking: House, tmp_path: Any) -> None:
    file = smollm2()
    shots = screenshots(tmp_path)
    with chromium() as browser:
        visitor = Visitor(
            browser, talking.console_url, viewport=WIDE, permissions=["clipboard-read", "clipboard-write"]
        ).log_in("admin", PASSWORD)
        page = visitor.page
        page.goto("/playground/")
        page.get_by_text("No language model yet").wait_for()
        page.locator("main").get_by_role("link", name="Upload a model").click()
        page.wait_for_selector("[data-island=uploader][data-awake]")
        page.fill("#model", "smollm2")
        drop(page, "[data-drop]", file)
        page.get_by_text("1 file, 0 B of 93.8 MB").wait_for()
        page.locator("[data-island=uploader]").get_by_role("button", name="Upload", exact=True).click()
        page.wait_for_url("**/models/smollm2/versions/1/", timeout=SLOW_MS)
        page.locator(".head .badge", has_text="Ready").wait_for(timeout=240_000)
        facts = page.locator("dl.facts").first.inner_text()
        assert re.search(r"Parameters\s+134\.5M, in 30 layers", facts), facts
        assert "stored as Q4_1" in facts
        assert re.search(r"Perplexity\s+\d+\.\d\d on a built-in text", facts), facts
        assert page.get_by_text(SMOLLM2_NAME).first.is_visible()
        assert page.get_by_text("text_output").count() == 1
        # A fragment that is renewed meanwhile would copy the style by which a screenshot hides carets: the CSP minds.
        page.screenshot(path=shots / "smollm2-version.png", full_page=True, caret="initial")

        page.get_by_role("button", name="Deploy version 1").click()
        page.wait_for_url("**/endpoints/smollm2/")
        page.locator(".replicas li", has_text="v1").locator(".badge.good").wait_for(timeout=SLOW_MS)
        page.get_by_role("link", name="Open the playground").click()
        page.wait_for_selector("[data-island=playground][data-awake]")
        page.locator(".pane .badge.good", has_text="1 replica ready").wait_for()

        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Max tokens").fill("24")
        first = say(page, "What is the capital of France?")
        assert "Paris" in first.locator(".text").inner_text()
        figures = first.locator("footer").inner_text()
        assert re.match(r"first token [\d.]+ m?s · [\d.]+ tokens/s · \d+ tokens", figures), figures
        spans = first.locator(".token")
        assert "".join(spans.all_inner_texts()).strip() == first.locator(".text").inner_text().strip()
        spans.filter(has_text="Paris").first.hover()
        top = page.get_by_role("tooltip").locator(".cells > div").all_inner_texts()
        assert "Paris" in top[0]
        assert 0 < float(re.findall(r"([\d.]+) %", top[0])[0]) <= 100
        page.screenshot(path=shots / "smollm2-chat.png")
        second = say(page, "And of Italy?")
        assert "Rome" in second.locator(".text").inner_text()
        page.screenshot(path=shots / "smollm2-history.png", full_page=True)
        same_over_the_api(talking, page, second.locator(".text").inner_text())
        structured(page)
        stopped(talking, page)
        assert visitor.troubles == []


def same_over_the_api(house: House, page: Any, said: str) -> None:
    """What "Copy as" gives says the same outside of the page, token for token: the first question anew, greedily."""
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Message").fill("What is the capital of France?")
    page.get_by_role("button", name="Copy the curl text").click()
    page.get_by_text("Copied.").first.wait_for()
    curl = page.evaluate("() => navigator.clipboard.readText()")
    page.get_by_role("tab", name="Python (openai)").click()
    python = page.locator("[data-lines=python]").inner_text()
    shown = say(page, "What is the capital of France?").locator(".text").inner_text()
    assert said != shown
    assert run_curl(curl, house.key).strip() == shown.strip()
    assert run_python(python, house.key).strip() == shown.strip()


def structured(page: Any) -> None:
    """The JSON schema holds, whatever the model would rather say."""
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Max tokens").fill("48")
    page.get_by_text("JSON schema", exact=True).click()
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Paris"]}, "inhabitants": {"type": "integer", "maximum": 99_999_999}},
        "required": ["city", "inhabitants"],
        "additionalProperties": False,
    }
    page.get_by_label("The answer must fit this schema").fill(json.dumps(schema))
    found = json.loads(say(page, "Describe the capital of France as JSON.").locator(".text").inner_text())
    assert found["city"] in {"Oslo", "Paris"}
    assert isinstance(found["inhabitants"], int)
    page.get_by_label("The answer must fit this schema").fill("")


def stopped(house: House, page: Any) -> None:
    """The stop button ends the sequence in the engine: nothing runs, and one more was aborted."""
    page.get_by_label("Max tokens").fill("2000")
    before = until("six chats have ended", lambda: max(0, figure(house, "serinus_language_finished") - 5), 10) + 5
    page.get_by_label("Message").fill("Write a very long story about a canary.")
    page.get_by_label("Message").press("Enter")
    page.locator(".turn.theirs[aria-busy] .token").nth(8).wait_for(timeout=SLOW_MS)
    until("the chat runs", lambda: figure(house, "serinus_language_running") == 1, 10)
    page.get_by_role("button", name="Stop").click()
    page.locator(".turn.theirs footer", has_text="stopped").wait_for()
    until("nothing runs", lambda: figure(house, "serinus_language_running") == 0, 10)
    until("the chat has ended", lambda: figure(house, "serinus_language_finished") > before, 10)
