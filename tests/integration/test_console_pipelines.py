"""A pipeline on its pages: the picture, the table that says the same, and the page on which one is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from registry.models import Model, Version
from tests.support.browser import Visitor, chromium, console_server, executable, screenshots
from tests.support.cast import make_cast
from tests.support.showroom import HOSTILE, REVIEWS, furnish, furnish_pipeline

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}


def client_of(person: Any) -> Client:
    client = Client()
    client.force_login(person, backend="accounts.login.LimitedBackend")
    return client


@pytest.fixture
def reviews(cast: Any) -> Version:
    return furnish_pipeline(cast)


def test_the_version_page_draws_the_graph_and_lists_its_steps(cast: Any, reviews: Version) -> None:
    client = client_of(cast.owner)
    with CaptureQueriesContext(connection) as taken:
        body = client.get("/models/reviews/versions/1/").content.decode()
    assert len(taken) <= 24, "\n".join(query["sql"][:130] for query in taken)
    assert body.count('<g class="box step">') == 4
    assert '<text class="label"' in body
    assert 'href="/models/classify-sentiment/versions/1/"' in body
    assert "clean text → x" in body
    assert "style=" not in body


def test_the_endpoint_page_says_how_each_step_stands(cast: Any, reviews: Version) -> None:
    client = client_of(cast.owner)
    with CaptureQueriesContext(connection) as taken:
        response = client.get("/endpoints/reviews/")
    body = response.content.decode()
    assert len(taken) <= 26, "\n".join(query["sql"][:130] for query in taken)
    assert "a step has none ready" in body
    assert "none ready · " in body
    assert "1 ready · " in body
    assert body.count("reviews/") < 20
    assert 'href="/models/embed/versions/1/">embed:1</a></b>' in body


def test_the_step_page_of_a_model_that_is_none_stays_as_it_was(cast: Any, reviews: Version) -> None:
    assert '<g class="box' not in client_of(cast.owner).get("/models/embed/versions/1/").content.decode()


def test_a_definition_is_checked_while_it_is_written(cast: Any, reviews: Version) -> None:
    client, before = client_of(cast.developer), Version.objects.count()

    def verdict(definition: Any) -> str:
        text = definition if isinstance(definition, str) else json.dumps(definition)
        response = client.post("/pipelines/check/", {"definition": text, "team": "red"})
        assert response.status_code == 200
        return response.content.decode()

    fits = verdict(REVIEWS)
    assert "It fits" in fits
    assert "Batches of up to 32" in fits
    assert fits.count('<g class="box step">') == 4
    wrong = json.loads(json.dumps(REVIEWS))
    wrong["steps"][1]["model"] = "ghost"
    body = verdict(wrong)
    assert "Not yet" in body
    assert "step &#x27;embed&#x27;: team red has no model &#x27;ghost&#x27; with a version" in body
    assert body.count('<g class="box step">') == 4
    assert "is not valid JSON" in verdict("{" + HOSTILE)
    assert "<img" not in verdict(json.dumps(REVIEWS).replace("clean text", HOSTILE.replace('"', "'")))
    assert Version.objects.count() == before


def test_one_is_made_from_the_page(cast: Any, reviews: Version) -> None:
    client = client_of(cast.developer)
    form = {"model": "second", "team": "red", "alias": "champion", "definition": json.dumps(REVIEWS)}
    response = client.post("/pipelines/create/", form)
    assert response.headers["Location"] == "/models/second/versions/1/"
    made = Version.objects.get(model__name="second")
    assert (made.status, made.format, made.aliases.get().name) == ("ready", "pipeline", "champion")
    response = client.post("/pipelines/create/", form)
    assert response.status_code == 400
    assert "already has exactly these files" in response.content.decode()
    assert "clean text" in response.content.decode()
    response = client.post("/pipelines/create/", form | {"definition": "{}"}, follow=True)
    assert "Object missing required field" in response.content.decode()
    assert Version.objects.get(model__name="second", number=2).status == "rejected"


def test_who_may_not_upload_may_not_write_one(cast: Any, reviews: Version) -> None:
    assert client_of(cast.teammate).get("/pipelines/new/").status_code == 403
    stranger = client_of(cast.stranger)
    form = {"model": "mine", "team": "red", "definition": json.dumps(REVIEWS)}
    assert stranger.post("/pipelines/create/", form).status_code == 404
    assert stranger.post("/pipelines/check/", form).status_code == 404
    body = stranger.post("/pipelines/check/", form | {"team": "blue"}).content.decode()
    assert "team blue has no model &#x27;clean&#x27;" in body
    assert not Model.objects.filter(name="mine").exists()


@pytest.mark.browser
@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine")
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_pictures_in_a_browser(settings: Any, monkeypatch: Any, tmp_path: Any) -> None:
    """Light, dark and on a phone: no console error, no accessibility violation, no page wider than its window."""
    from axe_playwright_python.sync_playwright import Axe

    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    cast = make_cast()
    furnish(cast, traffic=False)
    furnish_pipeline(cast)
    cast.owner.set_password("a long password of mine")
    cast.owner.save()
    shots = screenshots(tmp_path)
    looks: dict[str, dict[str, Any]] = {
        "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
        "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
        "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 780}},
    }
    with console_server() as url, chromium() as browser:
        for look, options in looks.items():
            visitor = Visitor(browser, url, **options, bypass_csp=look == "light")
            visitor.log_in("owner", "a long password of mine")
            for name, path in (("version", "/models/reviews/versions/1/"), ("endpoint", "/endpoints/reviews/")):
                visitor.page.goto(path)
                visitor.page.wait_for_selector(".graph svg")
                visitor.page.screenshot(path=shots / f"pipeline-{name}-{look}.png", full_page=True)
                assert visitor.too_wide_px <= 0, (look, name)
                if look == "light":
                    found = Axe().run(visitor.page, options=RULES).response["violations"]
                    assert not found, [
                        (one["id"], one["nodes"][0]["target"], one["nodes"][0]["failureSummary"]) for one in found
                    ]
            visitor.page.goto("/pipelines/new/")
            visitor.page.wait_for_selector("#verdict .checks")
            visitor.page.fill("#definition", json.dumps(REVIEWS, indent=1))
            visitor.page.wait_for_selector("#verdict h2:has-text('It fits')")
            visitor.page.wait_for_selector("#verdict .graph svg")
            visitor.page.screenshot(path=shots / f"pipeline-new-{look}.png", full_page=True)
            assert visitor.too_wide_px <= 0, look
            if look == "phone":
                visitor.page.fill("#model", "from-a-phone")
                visitor.page.click("text=Make the pipeline")
                visitor.page.wait_for_selector("h1:has-text('from-a-phone')")
            assert visitor.troubles == []
            visitor.context.close()
