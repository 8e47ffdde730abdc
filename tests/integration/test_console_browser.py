"""Chromium walks every page of a furnished console: no console errors, no accessibility violations, live updates."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.protocol.child import replica_log
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import make_cast
from tests.support.showroom import furnish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(240),
    # WhiteNoise serves files by sync iterators; harmless for small files (whitenoise issue 531).
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]
PAGES = {
    "overview": "/",
    "models": "/models/",
    "model": "/models/digits/",
    "version": "/models/digits/versions/1/",
    "rejected": "/models/digits/versions/3/",
    "validating": "/models/digits/versions/4/",
    "approval": "/models/digits/versions/5/",
    "upload": "/upload/",
    "endpoints": "/endpoints/",
    "endpoint": "/endpoints/digits/",
    "playground": "/playground/",
    "fleet": "/fleet/",
    "replica": "/fleet/replicas/REPLICA/",
    "jobs": "/jobs/",
    "job": "/jobs/JOB-in_progress/",
    "job-done": "/jobs/JOB-completed/",
    "job-wrong": "/jobs/JOB-failed/",
    "keys": "/keys/",
    "people": "/people/",
    "person": "/people/u/teammate/",
    "audit": "/audit/",
    "missing": "/models/nothing-here/",
}
ROOT = ("root", "a long password of mine")


@pytest.fixture
def cast_and_url(settings: Any, monkeypatch: Any) -> Iterator[Any]:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright's loop runs in the test's own thread
    cast = make_cast()
    furnish(cast)
    for person in (cast.root, cast.owner):
        person.set_password(ROOT[1])
        person.save()
    with console_server() as url:
        yield cast, url


def test_logs_are_filtered_paused_and_never_markup(cast_and_url: Any, settings: Any, tmp_path: Path) -> None:
    from fleet.models import Replica

    _, url = cast_and_url
    replica = Replica.objects.filter(deployment__version__model__name="digits", phase="ready").first()
    assert replica is not None
    path = settings.DATA_DIR / "logs" / replica_log(str(replica.pk), replica.generation)
    path.parent.mkdir(parents=True)
    stamp = "2026-01-02 03:04:05,678"
    path.write_text(f"{stamp} INFO a started\n{stamp} ERROR a <img src=x onerror=alert(1)>\nTraceback\n")
    with chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 360, "height": 740}).log_in(*ROOT)
        page = visitor.page
        page.goto(f"/fleet/replicas/{replica.pk}/")
        lines = page.locator("[data-lines] .line")
        lines.nth(2).wait_for()
        assert "<img src=x onerror=alert(1)>" in lines.nth(1).inner_text()
        with path.open("a") as file:
            file.write(f"{stamp} WARNING a more\n")
        lines.nth(3).wait_for()
        page.get_by_label("Least level").select_option("3")
        assert [text.split(" ", 1)[1] for text in lines.all_inner_texts()] == [
            f"{stamp} ERROR a <img src=x onerror=alert(1)>", "Traceback",
        ]  # fmt: skip
        page.get_by_label("Least level").select_option("0")
        page.get_by_label("Lines that contain").fill("STARTED")
        assert lines.count() == 1
        page.get_by_label("Lines that contain").fill("")
        page.screenshot(path=screenshots(tmp_path) / "logs-narrow.png", full_page=True)
        page.get_by_role("button", name="Pause").click()
        with path.open("a") as file:
            file.write("while paused\n")
        page.wait_for_timeout(1500)
        assert lines.count() == 4
        page.get_by_role("button", name="Go on").click()
        lines.nth(4).wait_for()
        assert visitor.too_wide_px <= 0
        assert visitor.troubles == []


def place(path: str) -> str:
    """The path with the id of a replica, or a batch, that there is."""
    from fleet.models import Replica
    from jobs.models import Batch

    for status, batch in Batch.objects.values_list("status", "public_id"):
        path = path.replace(f"JOB-{status}", batch)
    return path.replace("REPLICA", str(Replica.objects.filter(phase="ready").values_list("pk", flat=True)[0]))


def walk(visitor: Visitor, shots: Path, suffix: str) -> None:
    for name, path in PAGES.items():
        visitor.page.goto(place(path))
        visitor.page.wait_for_load_state("load")
        visitor.page.wait_for_timeout(1300 if name == "endpoint" else 250)
        visitor.page.screenshot(path=shots / f"{name}-{suffix}.png", full_page=True)
        assert visitor.too_wide_px <= 0, f"{name} is wider than the window ({suffix})"


def test_every_page_in_light_dark_and_narrow(cast_and_url: Any, tmp_path: Path) -> None:
    _, url = cast_and_url
    shots = screenshots(tmp_path)
    with chromium() as browser:
        visitors = []
        for suffix, options in {
            "light": {"viewport": {"width": 1360, "height": 860}, "color_scheme": "light"},
            "dark": {"viewport": {"width": 1360, "height": 860}, "color_scheme": "dark"},
            "narrow": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
        }.items():
            visitor = Visitor(browser, url, **options)
            visitors.append(visitor)
            visitor.page.goto("/login/")
            visitor.page.screenshot(path=shots / f"login-{suffix}.png")
            walk(visitor.log_in(*ROOT), shots, suffix)
        assert [trouble for visitor in visitors for trouble in visitor.troubles] == []


def test_axe_finds_nothing(cast_and_url: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    _, url = cast_and_url
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    found: list[str] = []
    with chromium() as browser:
        for scheme in ("light", "dark"):
            visitor = Visitor(browser, url, bypass_csp=True, color_scheme=scheme)
            visitor.page.goto("/login/")
            found += violations(Axe().run(visitor.page, options=rules), f"login {scheme}")
            visitor.log_in(*ROOT)
            for name, path in PAGES.items():
                visitor.page.goto(place(path))
                visitor.page.wait_for_timeout(200)
                found += violations(Axe().run(visitor.page, options=rules), f"{name} {scheme}")
    assert found == []


def violations(results: Any, where: str) -> list[str]:
    return [
        f"{where}: {one['id']} {node['html'][:160]} {node['any'][0]['message'][:160] if node['any'] else ''}"
        for one in results.response["violations"]
        for node in one["nodes"][:3]
    ]


def test_the_inside_of_an_endpoint_is_drawn_and_stands_in_tables_too(cast_and_url: Any) -> None:
    _, url = cast_and_url
    with chromium() as browser:
        visitor = Visitor(browser, url).log_in(*ROOT)
        page = visitor.page
        page.goto("/endpoints/digits/")
        page.locator("[data-bind=queue_depth]", has_text=re.compile(r"^14$")).wait_for()
        inside = page.locator("[data-island=inside-charts]")
        for name, head in (("stages", "Encode"), ("depth", "Requests waiting"), ("batches", "Batch size, rows")):
            chart = inside.locator(f"[data-chart={name}]")
            chart.get_by_text("Figures as a table").click()
            chart.locator("th", has_text=head).wait_for()
            chart.locator("tbody tr").first.wait_for()
        sizes = inside.locator("[data-chart=batches] tbody tr td:first-child").all_inner_texts()
        assert sizes == ["1", "4", "13\u201316", "49\u201364"]
        assert visitor.troubles == []


def test_a_split_is_moved_and_the_question_says_the_effect(cast_and_url: Any) -> None:
    from endpoints.models import Variant

    _, url = cast_and_url
    with chromium() as browser:
        visitor = Visitor(browser, url).log_in(*ROOT)
        page = visitor.page
        page.goto("/endpoints/digits/")
        page.wait_for_selector("form.split[data-awake]")
        page.locator("[data-connection][data-state=open]").wait_for()
        page.get_by_label("Share of version 2 in percent").fill("50")
        assert page.get_by_label("Share of version 1 in percent").input_value() == "50"
        page.get_by_role("button", name="Move traffic").click()
        question = page.locator("dialog").inner_text()
        assert "version 2: 10 % → 50 %" in question
        page.locator("dialog").get_by_role("button", name="Move traffic").click()
        page.wait_for_selector(".toast.success")
        assert visitor.troubles == []
    assert dict(Variant.objects.filter(endpoint__name="digits").values_list("version__number", "weight_bp")) == {
        1: 5000,
        2: 5000,
    }


def test_a_version_page_follows_its_validation_without_a_reload(cast_and_url: Any) -> None:
    from registry.models import ValidationRun, Version
    from tests.support.showroom import checks

    _, url = cast_and_url
    with chromium() as browser:
        visitor = Visitor(browser, url).log_in(*ROOT)
        page = visitor.page
        page.goto("/models/digits/versions/4/")
        page.locator(".checks .running").wait_for()
        page.evaluate_handle("() => { document.body.dataset.same = 'yes'; }")
        page.wait_for_timeout(1500)
        ValidationRun.objects.filter(version__number=4, version__model__name="digits").update(
            checks=checks(until=4, last="failed", message="it did not load", remedy="export it again")
        )
        page.get_by_text("it did not load").wait_for()
        Version.objects.filter(number=4, model__name="digits").update(status="rejected", reason="it did not load")
        page.locator(".badge.bad").wait_for()
        assert page.locator("body").get_attribute("data-same") == "yes"
        assert visitor.troubles == []


def test_files_are_uploaded_by_the_page_and_become_a_version(cast_and_url: Any, tmp_path: Path) -> None:
    from registry.models import Version

    _, url = cast_and_url
    big = tmp_path / "weights.bin"
    big.write_bytes(os.urandom(9 << 20))
    with chromium() as browser:
        visitor = Visitor(browser, url).log_in(*ROOT)
        page = visitor.page
        page.goto("/upload/")
        page.wait_for_selector("[data-island=uploader][data-awake]")
        page.fill("#model", "fresh")
        page.set_input_files("[data-input-files]", [str(big)])
        page.get_by_text("1 file, 0 B of 9.0 MB").wait_for()
        page.get_by_role("button", name="Upload").click()
        page.wait_for_url("**/models/fresh/versions/1/")
        page.get_by_text("weights.bin").first.wait_for()
        assert visitor.troubles == []
    held = Version.objects.get(model__name="fresh")
    assert held.manifest["files"][0]["size_bytes"] == 9 << 20


def test_an_upload_goes_on_after_a_reload(cast_and_url: Any, tmp_path: Path) -> None:
    """The second chunk is held up, the page reloaded, the same file chosen: only the rest is sent."""
    _, url = cast_and_url
    big = tmp_path / "weights.bin"
    big.write_bytes(os.urandom(20 << 20))
    sent: list[str] = []
    with chromium() as browser:
        visitor = Visitor(browser, url).log_in(*ROOT)
        page = visitor.page

        def handle(route: Any) -> None:
            sent.append(route.request.headers["upload-offset"])
            if blocked and route.request.headers["upload-offset"] != "0":
                return  # never answered
            route.continue_()

        blocked = True
        page.route(
            "**/api/uploads/*", lambda route: handle(route) if route.request.method == "PATCH" else route.continue_()
        )
        page.on("dialog", lambda dialog: dialog.accept())
        choose(page, big)
        page.get_by_text("8.0 MB of 20.0 MB").first.wait_for()
        blocked = False
        page.reload()
        sent.clear()
        choose(page, big)
        page.wait_for_url("**/models/fresh/versions/1/")
    assert sent[0] == str(8 << 20)


def choose(page: Any, file: Path) -> None:
    page.goto("/upload/")
    page.wait_for_selector("[data-island=uploader][data-awake]")
    page.fill("#model", "fresh")
    page.set_input_files("[data-input-files]", [str(file)])
    page.get_by_role("button", name="Upload").click()


def test_a_key_is_made_and_shown_once(cast_and_url: Any) -> None:
    _, url = cast_and_url
    with chromium() as browser:
        page = Visitor(browser, url).log_in(*ROOT).page
        page.goto("/keys/")
        page.fill("#name", "robot")
        page.get_by_role("button", name="Create key").click()
        token = page.locator("#token").inner_text()
        assert re.fullmatch(r"ser_[0-9a-z]{12}\.\S+", token)
        page.goto("/keys/")
        assert token not in page.content()


def test_hostile_text_does_not_run(cast_and_url: Any) -> None:
    _, url = cast_and_url
    with chromium() as browser:
        page = Visitor(browser, url).log_in(*ROOT).page
        for path in ("/models/digits/", "/models/digits/versions/3/", "/fleet/", "/audit/", "/keys/"):
            page.goto(path)
            page.wait_for_timeout(150)
            assert page.title() != "owned"
            assert page.locator("img").count() == 0


def test_the_theme_is_kept(cast_and_url: Any) -> None:
    _, url = cast_and_url
    with chromium() as browser:
        page = Visitor(browser, url, color_scheme="light").log_in(*ROOT).page
        page.get_by_role("button", name="Theme").click()
        assert page.locator("html").get_attribute("data-theme") == "dark"
        page.goto("/models/")
        assert page.locator("html").get_attribute("data-theme") == "dark"


def test_an_answer_is_shown_with_its_version_and_latency(cast_and_url: Any, tmp_path: Path) -> None:
    _, url = cast_and_url
    scores = [0.01, 0.02, 0.9, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
    outputs = [{"name": "scores", "datatype": "FP32", "shape": [1, 10], "data": scores}]
    times = {"console": 0.9, "gateway": 0.1, "network": 0.2, "queue": 1.0, "input": 0.2, "compute": 1.7, "output": 0.1}
    timeline = [{"part": part, "ms": took} for part, took in times.items()]
    answers = [
        {"response": {"outputs": outputs}, "latency_ms": 4.2, "version": "2", "arm": "canary", "timeline": timeline},
        {"error": {"code": "not_ready", "message": "No replica of this model version is ready.", "remedy": "Wait."}},
    ]
    sent: list[Any] = []
    with chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 1360, "height": 860}).log_in(*ROOT)
        page = visitor.page

        def answer(route: Any) -> None:
            sent.append(route.request.post_data_json)
            route.fulfill(json=answers[len(sent) - 1])

        page.route("**/endpoints/digits/try/", answer)
        page.goto("/endpoints/digits/")
        page.wait_for_selector("[data-island=try-it][data-awake]")
        page.get_by_role("button", name="Zeros for pixels").click()
        page.locator("[data-send]").click()
        result = page.locator("[data-result]")
        result.get_by_text("version 2").wait_for()
        assert result.locator(".answer b").inner_text() == "2"
        assert "4.20 ms" in result.inner_text()
        bars = result.locator(".timeline rect")
        assert bars.count() == len(times)
        assert bars.nth(5).get_attribute("width") == f"{100 * 1.7 / 4.2}%"
        said = result.locator(".timeline .cells > div").all_inner_texts()
        assert "Queue at the replica" in said[3]
        assert "1.00 ms" in said[3]
        page.screenshot(path=screenshots(tmp_path) / "answer-light.png")
        page.get_by_role("tab", name="JSON").click()
        page.locator("[data-send]").click()
        result.get_by_role("alert").wait_for()
        assert "No replica of this model version is ready." in result.inner_text()
        assert visitor.troubles == []
    tensor = sent[0]["request"]["inputs"][0]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("pixels", "FP32", [1, 64])
    assert tensor["data"] == [0] * 64
    assert sent[1]["request"] == sent[0]["request"]


def test_the_menu_opens_on_a_telephone(cast_and_url: Any, tmp_path: Path) -> None:
    _, url = cast_and_url
    with chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 360, "height": 740}).log_in(*ROOT)
        page = visitor.page
        assert not page.get_by_role("link", name="Endpoints", exact=True).is_visible()
        page.get_by_role("button", name="Menu").click()
        page.wait_for_timeout(100)
        page.screenshot(path=screenshots(tmp_path) / "menu-narrow.png")
        page.get_by_role("link", name="Endpoints", exact=True).click()
        page.wait_for_url("**/endpoints/")
        assert visitor.troubles == []


def test_lists_are_filtered_while_typing_and_permissions_explained(cast_and_url: Any) -> None:
    _, url = cast_and_url
    with chromium() as browser:
        visitor = Visitor(browser, url).log_in(*ROOT)
        page = visitor.page
        page.goto("/models/")
        page.locator("#q").press_sequentially("mini")
        page.get_by_role("link", name="digits", exact=True).first.wait_for(state="detached")
        assert page.get_by_role("link", name="minilm").first.is_visible()
        page.goto("/people/")
        page.select_option("#why-user", "teammate")
        page.select_option("#why-team", "red")
        page.select_option("#why-verb", "deploy")
        page.get_by_text("teammate may not deploy").wait_for()
        assert visitor.troubles == []
