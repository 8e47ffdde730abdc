"""Every page for every kind of person, through Django's own client: status, escape, query budgets."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from registry.models import ValidationRun
from tests.support.showroom import furnish

pytestmark = pytest.mark.django_db

# page -> most queries that one look may take (session, person and roles take three of them)
BUDGETS = {
    "/": 27,
    "/?part=overview": 24,
    "/models/": 10,
    "/models/?part=list&q=dig": 10,
    "/models/digits/": 16,
    "/models/digits/versions/1/": 20,
    "/models/digits/versions/1/?part=version": 20,
    "/models/digits/versions/3/": 18,
    "/models/digits/versions/4/": 18,
    "/models/digits/versions/5/": 18,
    "/models/digits/versions/1/report.json": 8,
    "/upload/?model=digits": 8,
    "/endpoints/": 12,
    "/endpoints/digits/": 21,
    "/endpoints/digits/?part=rollout": 12,
    "/endpoints/digits/?part=split": 12,
    "/endpoints/digits/rollouts/new/": 10,
    "/rollouts/": 8,
    "/rollouts/?part=rollouts": 8,
    "/plans/": 8,
    "/endpoints/digits/?part=replicas": 12,
    "/fleet/": 16,
    "/fleet/?part=fleet": 12,
    "/keys/": 10,
    "/people/": 10,
    "/people/u/teammate/": 12,
    "/people/why/?user=teammate&team=red&verb=deploy": 12,
    "/audit/": 10,
    "/jobs/": 10,
    "/jobs/?part=jobs": 8,
    "/audit/?part=list&verb=set_weights": 10,
}
OF_THE_TEAM = [path for path in BUDGETS if "digits" in path and path.startswith(("/models/d", "/endpoints/d"))]


@pytest.fixture
def console(cast: Any) -> Any:
    furnish(cast, traffic=False)
    return cast


def client_of(person: Any) -> Client:
    client = Client(raise_request_exception=True)
    client.force_login(person, backend="accounts.login.LimitedBackend")
    return client


@pytest.mark.parametrize("path", BUDGETS)
def test_an_owner_sees_every_page_within_its_query_budget(console: Any, path: str) -> None:
    client = client_of(console.owner)
    with CaptureQueriesContext(connection) as taken:
        response = client.get(path)
    assert response.status_code == 200, response.content[:500]
    assert len(taken) <= BUDGETS[path], "\n".join(query["sql"][:160] for query in taken)


@pytest.mark.parametrize("path", BUDGETS)
def test_hostile_text_is_shown_and_never_markup(console: Any, path: str) -> None:
    body = client_of(console.owner).get(path).content.decode()
    assert "<img" not in body
    assert "<script>document" not in body
    assert "style=" not in body
    assert " onclick" not in body


def test_the_hostile_text_is_really_there(console: Any) -> None:
    client = client_of(console.owner)
    for path in ("/models/digits/", "/models/digits/versions/3/", "/endpoints/digits/", "/fleet/", "/keys/", "/audit/"):
        assert "&lt;img src=x" in client.get(path).content.decode(), path


def test_no_page_grows_its_queries_with_its_rows(console: Any) -> None:
    from tests.support.showroom import version

    def cost(path: str) -> int:
        with CaptureQueriesContext(connection) as taken:
            assert client.get(path).status_code == 200
        return len(taken)

    client = client_of(console.owner)
    paths = ["/models/", "/models/digits/", "/fleet/", "/endpoints/digits/"]
    before = [cost(path) for path in paths]
    from registry.models import Model

    for number in range(5):
        more = Model.objects.create(name=f"more-{number}", team=console.red)
        version(more, console)
        version(Model.objects.get(name="digits"), console, digest=f"{number:x}" * 8)
    assert [cost(path) for path in paths] == before


@pytest.mark.parametrize("path", [*OF_THE_TEAM, "/people/u/owner/"])
def test_what_belongs_to_another_team_does_not_exist(console: Any, path: str) -> None:
    response = client_of(console.stranger).get(path)
    assert response.status_code == 404
    assert "There is nothing here" in response.content.decode()


def test_a_stranger_sees_no_name_of_another_team_on_shared_pages(console: Any) -> None:
    client = client_of(console.stranger)
    for path in ("/", "/models/", "/endpoints/", "/fleet/", "/keys/", "/audit/", "/upload/"):
        body = client.get(path).content.decode()
        assert "digits" not in body.replace("for example digits", ""), path
        assert "minilm" not in body, path


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/keys/", 403),
        ("/audit/", 403),
        ("/upload/", 403),
        ("/people/", 200),
        ("/models/digits/", 200),
        ("/endpoints/digits/", 200),
    ],
)
def test_a_viewer_reads_and_is_told_what_is_refused(console: Any, path: str, status: int) -> None:
    response = client_of(console.teammate).get(path)
    assert response.status_code == status
    if status == 403:
        assert "You may not do that" in response.content.decode()


def test_a_viewer_is_offered_nothing_that_changes_things(console: Any) -> None:
    client = client_of(console.teammate)
    for path in (
        "/models/digits/",
        "/models/digits/versions/1/",
        "/models/digits/versions/5/",
        "/endpoints/digits/",
        "/fleet/",
    ):
        body = client.get(path).content.decode()
        assert body.count('method="post"') == 1, path  # the way out


@pytest.mark.parametrize("path", ["/", "/models/", "/endpoints/digits/", "/audit/", "/fleet/"])
def test_nobody_is_let_in_without_logging_in(console: Any, path: str) -> None:
    response = Client().get(path)
    assert response.status_code == 302
    assert response["Location"].startswith("/login/?next=")
    assert Client().get(path, headers={"HX-Request": "true"})["HX-Redirect"].startswith("/login/")


def test_an_empty_console_says_what_to_do_next(cast: Any) -> None:
    client = client_of(cast.owner)
    assert "First steps" in client.get("/").content.decode()
    for path in ("/models/", "/endpoints/", "/fleet/", "/keys/", "/audit/"):
        assert 'class="empty"' in client.get(path).content.decode(), path


def test_the_security_policy_allows_scripts_and_styles_from_here_only(cast: Any) -> None:
    policy = Client().get("/login/")["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


def test_insecure_mode_is_said_on_every_page(console: Any, settings: Any) -> None:
    settings.INSECURE = True
    client = client_of(console.owner)
    assert all("Insecure mode" in client.get(path).content.decode() for path in ("/", "/models/", "/keys/"))


def test_logging_in_and_out(console: Any) -> None:
    console.owner.set_password("a long password of mine")
    console.owner.save()
    client = Client()
    refused = client.post("/login/", {"username": "owner", "password": "wrong"})
    assert refused.status_code == 200
    assert "note bad" in refused.content.decode()
    entered = client.post("/login/", {"username": "owner", "password": "a long password of mine", "next": "/models/"})
    assert entered["Location"] == "/models/"
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/").status_code == 302
    assert client.get("/").status_code == 302


def test_a_login_never_sends_people_to_a_foreign_page(console: Any) -> None:
    console.owner.set_password("a long password of mine")
    console.owner.save()
    data = {"username": "owner", "password": "a long password of mine", "next": "https://evil.example/"}
    assert Client().post("/login/", data)["Location"] == "/"


def test_running_checks_are_shown_while_validating(console: Any) -> None:
    client = client_of(console.teammate)
    assert "running" in client.get("/models/digits/versions/4/").content.decode()
    ValidationRun.objects.all().delete()
    assert "Waiting for a host" in client.get("/models/digits/versions/4/").content.decode()


def test_keyset_pages_show_every_entry_once(console: Any) -> None:
    from accounts.audit import record

    for number in range(120):
        record(console.actor("owner"), "test", "thing", f"thing-{number}", team=console.red)
    client, seen, path = client_of(console.owner), [], "/audit/?verb=test"
    while path:
        body = client.get(path).content.decode()
        seen += [number for number in range(120) if f">thing-{number}<" in body]
        _, _, rest = body.partition('<a class="button small" href="')
        path = "/audit/" + rest.partition('"')[0].replace("&amp;", "&") if rest else ""
    assert sorted(seen) == list(range(120))


def test_a_failure_of_ours_is_a_page_without_its_cause(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr("console.views.overview.endpoint_states", fail)
    client = client_of(console.owner)
    client.raise_request_exception = False
    response = client.get("/")
    assert response.status_code == 500
    assert "The console failed" in response.content.decode()
    assert "secret cause" not in response.content.decode()
    assert response["X-Request-Id"]
