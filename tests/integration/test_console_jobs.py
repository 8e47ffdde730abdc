"""The jobs pages: who may follow what live, the form that starts a batch, progress bars that move, cancelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from console.live import feed_of
from inference.errors import NotFound
from jobs.models import Batch, File
from jobs.statuses import Status
from tests.support.batches import begin, jsonl, line, make_endpoint, upload
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import Cast, make_cast

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]
PASSWORD = "a long password of mine"


@pytest.fixture
def people(transactional_db: None) -> Cast:
    found = make_cast()
    make_endpoint(found.red, "chat")
    return found


def client_of(person: Any) -> Client:
    client = Client()
    client.force_login(person, backend="accounts.login.LimitedBackend")
    return client


def test_a_job_tells_how_far_how_fast_and_how_long_still(people: Cast) -> None:
    from datetime import timedelta

    from django.utils import timezone

    batch = begin(people.key_actor("developer"), [line(0)])
    topic = f"job:{batch.public_id}"
    before = feed_of(people.actor("teammate"), topic).read()
    assert (before["share"], before["speed"], before["eta"]) == (0, None, None)
    Batch.objects.update(
        status="in_progress", total=100, completed=20, failed=5, in_progress_at=timezone.now() - timedelta(seconds=50)
    )
    after = feed_of(people.actor("teammate"), topic).read()
    assert (after["share"], after["done"], after["failed"]) == (0.25, 25, 5)
    assert after["speed"] == pytest.approx(0.5, rel=0.05)
    assert after["eta"] == pytest.approx(150, rel=0.05)
    assert after["stamps"] != before["stamps"]
    listed = feed_of(people.actor("teammate"), "jobs").read()
    assert listed[f"share:{batch.public_id}"] == 0.25


def test_jobs_of_others_do_not_exist(people: Cast) -> None:
    batch = begin(people.key_actor("developer"), [line(0)])
    stranger = people.actor("stranger")
    with pytest.raises(NotFound):
        feed_of(stranger, f"job:{batch.public_id}")
    assert f"share:{batch.public_id}" not in feed_of(stranger, "jobs").read()
    assert feed_of(stranger, "jobs").key != feed_of(people.actor("teammate"), "jobs").key
    client = client_of(people.stranger)
    assert client.get(f"/jobs/{batch.public_id}/").status_code == 404
    assert client.post(f"/jobs/{batch.public_id}/cancel/").status_code == 404
    assert batch.public_id not in client.get("/jobs/").content.decode()


def test_an_empty_list_says_how_to_begin(people: Cast) -> None:
    page = client_of(people.developer).get("/jobs/").content.decode()
    assert "No batch yet" in page
    assert "client.batches.create" in page
    assert "&quot;model&quot;: &quot;chat&quot;" in page


def test_only_who_may_change_it_sees_the_button(people: Cast) -> None:
    batch = begin(people.key_actor("owner"), [line(0)])
    url = f"/jobs/{batch.public_id}/"
    assert "Cancel this job?" not in client_of(people.teammate).get(url).content.decode()
    assert client_of(people.teammate).post(f"{url}cancel/").status_code == 403
    assert "Cancel this job?" in client_of(people.developer).get(url).content.decode()
    client_of(people.developer).post(f"{url}cancel/")
    assert Batch.objects.get().status == Status.CANCELLING


def test_failed_lines_are_shown_with_what_came_back(people: Cast) -> None:
    maker = people.key_actor("developer")
    batch = begin(maker, [line(0)])
    rows = [
        {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "too late"}},
        {"custom_id": "b", "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}, "error": None},
        {"custom_id": "c", "response": {"status_code": 502, "body": "<b>odd</b>"}, "error": None},
    ]
    Batch.objects.update(status="expired", error_file=upload(maker, jsonl(rows)))
    page = client_of(people.teammate).get(f"/jobs/{batch.public_id}/").content.decode()
    for text in ("batch_expired", "too late", "400", "too long", "502"):
        assert text in page
    assert "<b>odd</b>" not in page


@pytest.mark.browser
@pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine")
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_a_batch_is_started_followed_and_cancelled_in_the_browser(
    people: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    people.developer.set_password(PASSWORD)
    people.developer.save()
    source = tmp_path / "questions.jsonl"
    source.write_bytes(jsonl([line(n) for n in range(40)]))
    with console_server() as url, chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 360, "height": 740}).log_in("developer", PASSWORD)
        page = visitor.page
        page.goto("/jobs/")
        page.get_by_text("No batch yet").wait_for()
        page.screenshot(path=screenshots(tmp_path) / "jobs-empty-narrow.png", full_page=True)
        assert visitor.too_wide_px <= 0
        page.get_by_label("Lines (JSONL)").set_input_files(source)
        page.get_by_role("button", name="Start").click()
        page.get_by_text("Validating").wait_for()
        assert File.objects.get().filename == "questions.jsonl"
        assert Batch.objects.get().person == people.developer
        Batch.objects.update(status="in_progress", total=40, cursor=0)
        page.locator(".badge", has_text="In progress").wait_for()
        Batch.objects.update(completed=30)
        page.locator("[data-bind=completed]", has_text="30").wait_for()
        assert page.locator("progress[data-bind=share]").evaluate("(bar) => bar.value") == 0.75
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel it").click()
        page.locator(".badge", has_text="Cancelling").wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="questions.jsonl").click()
        assert Path(download.value.path()).read_bytes() == source.read_bytes()
        page.goto("/jobs/")
        row = page.locator("tr", has_text="Cancelling")
        row.locator("progress").wait_for()
        assert visitor.too_wide_px <= 0
        assert visitor.troubles == []


@pytest.mark.browser
@pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine")
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_failed_lines_are_read_on_a_phone_without_scrolling_sideways(
    people: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    people.developer.set_password(PASSWORD)
    people.developer.save()
    maker = people.key_actor("developer")
    batch = begin(maker, [line(0)])
    words = "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."
    rows: list[Any] = [
        {"id": "r", "custom_id": custom, "response": None, "error": {"code": code, "message": words}}
        for custom, code in (("q-1", "batch_expired"), ("x" * 64, "context_length_exceeded"))
    ]
    errors = [{"line": 12_345, "code": "invalid_json_line", "message": words, "param": None}]
    Batch.objects.update(status="expired", error_file=upload(maker, jsonl(rows)), errors=errors)
    with console_server() as url, chromium() as browser:
        visitor = Visitor(browser, url, viewport={"width": 360, "height": 740}).log_in("developer", PASSWORD)
        visitor.page.goto(f"/jobs/{batch.public_id}/")
        for label in ("Failed lines", "Errors of the file"):
            region = visitor.page.get_by_role("region", name=label)
            assert region.evaluate("(e) => e.scrollWidth - e.clientWidth") <= 0, label
        assert visitor.too_wide_px <= 0
        visitor.page.screenshot(path=screenshots(tmp_path) / "job-failed-narrow.png", full_page=True)
        assert visitor.troubles == []
