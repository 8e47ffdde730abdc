"""The playground in Chromium: the real console, a real gateway process, fake language replicas that say what was asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from console import chat
from endpoints.models import Adapter, Variant
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import make_cast
from tests.support.gateway_house import House, until
from tests.support.pasted import run_curl, run_python
from tests.support.playroom import furnish_language, open_gateway, publish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]
PASSWORD = "a long password of mine"
HELD_MS = 30_000  # the gateway waits a while for a replica
SCHEMA = {"type": "object", "properties": {"a": {"default": None}}, "additionalProperties": False, "x": True}
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


def test_pointing_at_a_token_shows_what_else_there_was(url: str, tmp_path: Path) -> None:
    with chromium() as browser:
        visitor = opened(browser, url)
        page = visitor.page
        say(page, "red green blue")
        answers(page).first.wait_for()
        tokens = page.locator(".turn.theirs .token")
        assert tokens.all_inner_texts() == ["red", " green", " blue"]
        tip = page.get_by_role("tooltip")
        tokens.nth(1).hover()
        rows = tip.locator(".cells > div")
        assert rows.all_inner_texts()[0].split() == ["␣green", "60.7", "%"]
        assert rows.count() == 5
        assert tokens.nth(1).get_attribute("aria-describedby") == "token-tip"
        page.screenshot(path=screenshots(tmp_path) / "playground-token.png")
        page.mouse.move(5, 5)
        tip.wait_for(state="hidden")
        text = page.get_by_role("group", name=re.compile("^Answer"))
        text.focus()
        text.press("ArrowRight")
        text.press("ArrowRight")
        assert "green" in tip.inner_text()
        assert page.get_by_role("status").filter(has_text="green, 60.7 %").count() == 1
        text.press("Escape")
        tip.wait_for(state="hidden")
        page.get_by_label("Token probabilities").uncheck()
        say(page, "plain words")
        answers(page).nth(1).wait_for()
        assert answers(page).nth(1).locator(".token").count() == 0
        assert answers(page).nth(1).locator(".text").inner_text() == "plain words"
        assert visitor.troubles == []


def test_stop_ends_the_generation_at_the_replica_and_keeps_what_was_said(url: str, house: House) -> None:
    replica = house.replicas["tiny-1"]
    before = len(replica.cancelled)
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=tiny@1")
        page = visitor.page
        say(page, "slow" + " w" * 400)
        page.locator(".turn.theirs[aria-busy] .token").nth(3).wait_for()
        assert page.get_by_role("button", name="Send").count() == 0
        page.get_by_role("button", name="Stop").click()
        answers(page).first.wait_for()
        until(lambda: len(replica.cancelled) == before + 1)
        assert "stopped" in answers(page).first.locator("footer").inner_text()
        said = answers(page).first.locator(".text").inner_text()
        assert said.startswith("slow w w")
        assert len(said) < 700
        say(page, "go on")
        answers(page).nth(1).wait_for()
        assert replica.asked[-1].prompt.messages[1] == {"role": "assistant", "content": said}
        say(page, "slow" + " w" * 400)
        page.locator(".turn.theirs[aria-busy] .token").first.wait_for()
        page.goto("/models/")
        until(lambda: len(replica.cancelled) == before + 2)
        assert visitor.troubles == []


def test_two_versions_answer_side_by_side_with_histories_of_their_own(url: str, house: House, tmp_path: Path) -> None:
    first, second = house.replicas["tiny-1"], house.replicas["tiny-2"]
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=tiny@1")
        page = visitor.page
        page.get_by_role("button", name="Compare two").click()
        assert page.get_by_label("Model B").input_value() == "tiny@2"
        assert page.evaluate("location.search") == "?a=tiny%401&b=tiny%402"
        say(page, "slow to both")
        answers(page, 0).wait_for()
        answers(page, 1).wait_for()
        assert first.asked[-1].prompt.messages == second.asked[-1].prompt.messages
        assert page.locator(".turn.theirs h3").all_inner_texts() == ["tiny v1", "tiny v2"]
        page.screenshot(path=screenshots(tmp_path) / "playground-two.png")
        page.get_by_label("Model B").select_option("asleep")
        page.get_by_role("button", name="Compare two").click()
        assert page.locator(".pane").count() == 1
        assert page.evaluate("location.search") == "?a=tiny%401"
        page.goto("/playground/?a=tiny@2&b=tiny@1")
        page.locator(".pane").nth(1).wait_for()
        assert [page.get_by_label(f"Model {side}").input_value() for side in "AB"] == ["tiny@2", "tiny@1"]
        assert visitor.troubles == []


def test_an_adapter_is_chosen_by_its_name(url: str, house: House) -> None:
    variant = Variant.objects.get(endpoint__name="tiny", version__number=1)
    Adapter.objects.create(variant=variant, version=variant.version, name="polite")
    publish(house, ("polite",))
    with chromium() as browser:
        page = opened(browser, url, "/playground/?a=tiny:polite").page
        assert page.get_by_label("Model A").input_value() == "tiny:polite"
        say(page, "sing")
        answers(page).first.wait_for()
        assert answers(page).first.locator(".text").inner_text().startswith("please")
    assert house.replicas["tiny-1"].asked[-1].adapter == "polite"


def test_what_goes_wrong_is_said_with_what_to_do(url: str, tmp_path: Path) -> None:
    with chromium() as browser:
        visitor = opened(browser, url)
        page = visitor.page
        alert = page.locator(".turn").get_by_role("alert")
        say(page, "word " * 600)
        alert.wait_for()
        assert "maximum context length is 512 tokens. However, your prompt has 600 tokens" in alert.inner_text()
        assert "Clear the conversation" in alert.inner_text()
        page.get_by_role("button", name="Clear").click()
        say(page, "break a b c d")
        alert.wait_for()
        assert "The model ran out of memory." in alert.inner_text()
        assert page.locator(".turn.theirs .text").inner_text() == "break a"
        page.get_by_role("button", name="Clear").click()
        page.get_by_label("Model A").select_option("asleep")
        assert page.locator(".pane .badge").inner_text() == "No replica ready"
        say(page, "anybody?")
        page.get_by_text("No replica is ready: waiting for one").wait_for()
        alert.wait_for(timeout=HELD_MS)
        assert "No replica of this model version is ready." in alert.inner_text()
        assert alert.get_by_role("link", name="Endpoint asleep").get_attribute("href") == "/endpoints/asleep/"
        page.screenshot(path=screenshots(tmp_path) / "playground-trouble.png")
        page.get_by_label("Model A").select_option("tiny@1")
        alert.get_by_role("button", name="Try again").click()
        answers(page).first.wait_for()
        assert answers(page).first.locator(".text").inner_text() == "anybody?"
        assert page.locator(".turn").count() == 2
        assert visitor.troubles == []


def test_a_model_without_a_chat_template_completes_a_prompt(url: str, house: House) -> None:
    replica = house.replicas["tiny-1"]
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=untaught")
        page = visitor.page
        page.get_by_text("This model has no chat template").wait_for()
        for number, text in enumerate(("once upon", "a time there")):
            say(page, text)
            answers(page).nth(number).wait_for()
        assert answers(page).nth(1).locator(".token").all_inner_texts() == ["a", " time", " there"]
        assert replica.asked[-1].prompt == "a time there"
        assert "/v1/completions" in page.locator("[data-lines=curl]").inner_text()
        page.locator(".token").last.hover()
        assert page.get_by_role("tooltip").locator(".cells > div").count() == 5
        assert visitor.troubles == []


def test_a_session_that_ended_is_said_and_the_next_one_goes_on(url: str, monkeypatch: Any) -> None:
    from accounts.models import User

    monkeypatch.setattr(chat, "WATCH_S", 0.3)
    with chromium() as browser:
        visitor = opened(browser, url)
        page = visitor.page
        say(page, "first")
        answers(page).first.wait_for()
        User.objects.filter(username="root").update(is_active=False)
        page.wait_for_timeout(1000)
        say(page, "second")
        alert = page.locator(".turn").get_by_role("alert")
        alert.wait_for()
        assert "reload the page" in alert.inner_text()
        User.objects.filter(username="root").update(is_active=True)
        alert.get_by_role("button", name="Try again").click()
        answers(page).nth(1).wait_for()
        assert answers(page).nth(1).locator(".text").inner_text() == "second"
        expect(page.get_by_label("Message")).to_be_focused()
        assert visitor.troubles == []


def test_bad_settings_are_refused_where_they_stand(url: str, house: House) -> None:
    replica = house.replicas["tiny-1"]
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=tiny@1")
        page = visitor.page
        asked = len(replica.asked)
        page.get_by_label("Temperature").fill("9")
        say(page, "too hot")
        assert page.get_by_label("Temperature").evaluate("(e) => e === document.activeElement && !e.validity.valid")
        page.get_by_label("Temperature").fill("0")
        page.get_by_text("JSON schema", exact=True).click()
        schema = page.get_by_label("The answer must fit this schema")
        schema.fill('{"type": "object"')
        page.get_by_label("Message").press("Enter")
        page.get_by_text("This is not valid JSON").wait_for()
        assert schema.get_attribute("aria-invalid") == "true"
        assert len(replica.asked) == asked
        assert page.get_by_label("Message").input_value() == "too hot"
        schema.fill('{"type": "object", "properties": {"a": {"type": "integer"}}}')
        say(page, "json please")
        answers(page).first.wait_for()
        assert answers(page).first.locator(".text").inner_text() == '{"a":1}'
        sampling = replica.asked[-1].sampling
        assert '"integer"' in sampling.structure.json_schema
        assert sampling.temperature == 0
        assert visitor.troubles == []


def test_text_is_appended_once_per_frame_and_never_as_markup(url: str, house: House, monkeypatch: Any) -> None:
    hostile = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
    monkeypatch.setattr(house.replicas["tiny-1"], "pace_s", 0.0)
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=tiny@1")
        page = visitor.page
        title = page.title()
        say(page, hostile)
        answers(page).first.wait_for()
        assert answers(page).first.locator(".text").inner_text() == hostile
        assert page.locator(".turn img, .turn script").count() == 0
        assert page.title() == title
        page.get_by_label("Max tokens").fill("6000")
        page.evaluate(
            """() => {
              window.seen = { appends: 0, frames: 0, most: 0, long: [] };
              new PerformanceObserver((list) => seen.long.push(...list.getEntries().map((e) => e.duration))).observe({ type: "longtask" });
              const count = () => { seen.frames += 1; seen.most = Math.max(seen.most, seen.now ?? 0); seen.now = 0; requestAnimationFrame(count); };
              requestAnimationFrame(count);
              new MutationObserver((all) => { for (const one of all) if (one.target.className === "text") { seen.appends += 1; seen.now += 1; } })
                .observe(document.querySelector(".log"), { childList: true, subtree: true });
            }"""
        )
        say(page, "long")
        answers(page).nth(1).wait_for(timeout=60_000)
        text = answers(page).nth(1).locator(".text")
        assert text.inner_text() == "w" * 6000
        assert text.locator(".token").count() == 4096
        seen = page.evaluate("seen")
        assert seen["most"] <= 1
        assert seen["appends"] <= seen["frames"]
        assert max(seen["long"], default=0) < 1000
        assert visitor.troubles == []


def test_the_request_is_copied_as_curl_and_as_python(url: str, house: House) -> None:
    with chromium() as browser:
        visitor = opened(browser, url, "/playground/?a=tiny@2", permissions=["clipboard-read", "clipboard-write"])
        page = visitor.page
        page.get_by_label("Message").fill("it's “so” \\ $HOME")
        page.get_by_label("Seed").fill("3")
        page.get_by_text("JSON schema", exact=True).click()
        page.get_by_label("The answer must fit this schema").fill(json.dumps(SCHEMA))
        page.get_by_role("button", name="Copy the curl text").click()
        page.get_by_text("Copied.").first.wait_for()
        curl = page.evaluate("() => navigator.clipboard.readText()")
        page.get_by_role("tab", name="Python (openai)").click()
        page.get_by_role("button", name="Copy the Python text").click()
        until(lambda: "OpenAI" in page.evaluate("() => navigator.clipboard.readText()"))
        python = page.evaluate("() => navigator.clipboard.readText()")
        assert visitor.troubles == []
    assert run_curl(curl, "ser_all.s2") == "it's “so” \\ $HOME"
    assert run_python(python, "ser_all.s2").strip() == "it's “so” \\ $HOME"
    sampling = house.replicas["tiny-2"].asked[-1].sampling
    assert sampling.seed == 3
    assert json.loads(sampling.structure.json_schema) == SCHEMA


def test_axe_finds_nothing_and_targets_are_large(url: str, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    shots, found = screenshots(tmp_path), []
    with chromium() as browser:
        for name, options in {
            "light": {"color_scheme": "light"},
            "dark": {"color_scheme": "dark"},
            "narrow": {"viewport": {"width": 360, "height": 740}},
        }.items():
            visitor = opened(browser, url, "/playground/?a=tiny@1&b=asleep", bypass_csp=True, **options)
            page = visitor.page
            say(page, "think about the colours of the sky, and of the sea, and of all that lies between them")
            answers(page, 0).wait_for()
            answers(page, 1).wait_for(timeout=HELD_MS)
            page.get_by_text("JSON schema", exact=True).click()
            page.locator(".token").nth(1).hover()
            page.screenshot(path=shots / f"playground-{name}-all.png", full_page=True)
            results = Axe().run(page, options=rules).response["violations"]
            found += [f"{name}: {one['id']} {node['html'][:160]}" for one in results for node in one["nodes"][:3]]
            small = page.locator(".playground :is(button, select, input, textarea, summary):visible").evaluate_all(
                "(all) => all.filter((e) => e.type !== 'checkbox' && e.getBoundingClientRect().height < 43.9).map((e) => e.outerHTML.slice(0, 90))"
            )
            assert small == [], name
            assert visitor.too_wide_px <= 0, name
            assert visitor.troubles == []
            visitor.context.close()
    assert found == []


def test_a_language_model_is_no_tensor_on_its_pages(url: str, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    shots, found = screenshots(tmp_path), []
    with chromium() as browser:
        for scheme in ("light", "dark"):
            visitor = opened(browser, url, bypass_csp=True, color_scheme=scheme)
            page = visitor.page
            for name, path in (
                ("version", "/models/tiny/versions/1/"),
                ("endpoint", "/endpoints/tiny/"),
                ("model", "/models/tiny/"),
            ):
                page.goto(path)
                page.wait_for_timeout(300)
                page.screenshot(path=shots / f"language-{name}-{scheme}.png", full_page=True)
                results = Axe().run(page, options=rules).response["violations"]
                found += [f"{name}: {one['id']} {node['html'][:160]}" for one in results for node in one["nodes"][:3]]
                page.set_viewport_size({"width": 360, "height": 740})
                page.screenshot(path=shots / f"language-{name}-{scheme}-narrow.png", full_page=True)
                assert visitor.too_wide_px <= 0, name
                page.set_viewport_size(WIDE)
            assert visitor.troubles == []
    assert found == []
