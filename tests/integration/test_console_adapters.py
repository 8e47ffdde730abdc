"""Adapters on an endpoint's page: shown, added, removed, and refused with the reason."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import Role
from endpoints import actions, adapters
from endpoints.models import Adapter
from fleet.models import Deployment, Replica
from tests.support.fleet_cast import person, version

pytestmark = pytest.mark.django_db
ADDRESS = "/endpoints/lm/"


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def dev():
    return person("dev", Role.DEVELOPER)


@pytest.fixture
def endpoint(dev):
    return actions.deploy(version=version("lm", settings={"generation": {"max_adapters": 1}}), actor=dev)


@pytest.fixture
def client(dev, endpoint) -> Client:
    found = Client()
    found.force_login(dev.user, backend="accounts.login.LimitedBackend")
    return found


def lora(model: str = "fr", base: str = "lm:1"):
    return version(model, format="lora", settings={"parameters": {"base": base}})


def text(client: Client, path: str = ADDRESS) -> str:
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def test_the_page_offers_adapters_of_the_base_alone(client):
    assert "Upload an adapter with the setting" in text(client)
    lora()
    lora("foreign", base="lm:2")
    page = text(client)
    assert '<option value="fr:1">' in page
    assert "foreign:1" not in page


def test_one_is_added_and_removed_and_the_page_says_how_it_stands(client, endpoint):
    row = lora()
    added = client.post(f"{ADDRESS}adapters/", {"version": "fr:1", "name": "french"}, follow=True)
    assert "Clients name it “lm:french”" in added.content.decode()
    replica = Replica.objects.create(deployment=Deployment.objects.get(), wanted="run", phase="ready")
    assert "0 of 1 replica" in text(client)
    told = {"name": "french", "digest": row.digest, "state": "failed", "message": "its rank is too large"}
    Replica.objects.update(adapters=[told])
    page = text(client, f"{ADDRESS}?part=replicas")
    assert "Not loaded" in page
    assert "its rank is too large" in page
    assert "french failed (its rank is too large)" in text(client, f"/fleet/replicas/{replica.pk}/")
    Replica.objects.update(adapters=[told | {"state": "loaded", "message": ""}])
    assert "1 of 1 replica" in text(client)
    removed = client.post(f"{ADDRESS}adapters/french/remove/", follow=True)
    assert "“lm:french” is gone" in removed.content.decode()
    assert not Adapter.objects.exists()


def test_what_is_refused_says_what_to_do(client, endpoint, dev):
    adapters.attach(endpoint=endpoint, version=lora(), actor=dev)
    lora("de")
    answer = client.post(f"{ADDRESS}adapters/", {"version": "de:1"}, follow=True)
    assert "1 adapters at most" in answer.content.decode()


def test_who_may_not_deploy_sees_them_and_changes_nothing(endpoint, dev):
    adapters.attach(endpoint=endpoint, version=lora(), actor=dev)
    viewer = Client()
    viewer.force_login(person("viewer", Role.VIEWER).user, backend="accounts.login.LimitedBackend")
    page = text(viewer)
    assert "lm:fr" in page
    assert "Add adapter" not in page
    assert viewer.post(f"{ADDRESS}adapters/fr/remove/").status_code == 403
    assert viewer.post(f"{ADDRESS}adapters/", {"version": "fr:1"}).status_code == 403
    assert Adapter.objects.count() == 1
