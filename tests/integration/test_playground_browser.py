"""The playground in Chromium: the real console, a real gateway process, fake language replicas that say what was asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import make_cast
from tests.support.gateway_house import House, until
from tests.support.playroom import furnish_language, open_gateway, publish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]
PASSWORD = "a long password of mine"
WIDE = {"width": 1360, "height": 860}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    found = House()
    open_gateway(found)
    yield found
    found.close()


@pytest.fixture
def url(house: House, settings: Any, monkeypatch: Any) -> Iterator[str]:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright's loop runs in the test's own thread
    settings.GATEWAY_URL = house.gateways[0].url
    cast = make_cast()
    furnish_language(cast)
    cast.root.set_password(PASSWORD)
    cast.root.save()
    publish(house)
    with console_server() as found:
        yield found


def opened(browser: Any, url: str, path: str = "/playground/", **context: Any) -> Visitor:
    visitor = Visitor(browser, url, **({"viewport": WIDE} | context)).log_in("root", PASSWORD)
    visitor.page.goto(path)
    visitor.page.wait_for_selector("[data-island=playground][data-awake]")
    visitor.page.locator(".pane .badge.good, .pane .badge.bad").first.wait_for()
    return visitor


def say(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def answers(page: Any, pane: int = 0) -> Any:
    return page.locator(".pane").nth(pane).locator(".turn.theirs:not([aria-busy])")


def test_a_chat_streams_with_its_figures_and_keeps_its_history(url: str, house: House, tmp_path: Path) -> None:
    replica = house.replicas["tiny-1"]
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=tiny@1")
        page = visitor.page
        page.get_by_label("System prompt").fill("Be brief.")
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Stop texts").fill("END\n###")
        say(page, "slow one two three")
        answers(page).first.wait_for()
        assert answers(page).first.locator(".text").inner_text() == "slow one two three"
        figures = answers(page).first.locator("footer").inner_text()
        assert re.match(r"first token [\d.]+ m?s · [\d.]+ tokens/s · 4 tokens", figures), figures
        page.get_by_label("Message").press_sequentially("two")
        page.get_by_label("Message").press("Shift+Enter")
        page.get_by_label("Message").press_sequentially("lines")
        page.get_by_label("Message").press("Enter")
        answers(page).nth(1).wait_for()
        assert answers(page).nth(1).locator(".text").inner_text() == "two\nlines"
        asked = replica.asked[-1]
        assert [(one["role"], one["content"]) for one in asked.prompt.messages] == [
            ("system", "Be brief."), ("user", "slow one two three"), ("assistant", "slow one two three"), ("user", "two\nlines"),
        ]  # fmt: skip
        assert (asked.sampling.temperature, asked.sampling.seed, asked.sampling.stop) == (0.7, 7, ["END", "###"])
        assert asked.sampling.max_tokens == 512
        page.screenshot(path=screenshots(tmp_path) / "playground-light.png", full_page=True)
        page.get_by_role("button", name="Clear").click()
        assert page.locator(".turn").count() == 0
        say(page, "anew")
        answers(page).first.wait_for()
        assert [one["content"] for one in replica.asked[-1].prompt.messages] == ["Be brief.", "anew"]
        assert visitor.troubles == []
