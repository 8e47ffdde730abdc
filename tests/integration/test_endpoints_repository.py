from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from accounts.models import AuditEntry
from accounts.permissions import SYSTEM
from endpoints import actions, repository
from endpoints.models import Endpoint, RepositoryModel, Variant
from endpoints.standing import Standing, standing_of
from fleet.models import Deployment, Host, Replica
from inference.errors import Conflict, Forbidden, NotFound
from tests.support.cast import Cast
from tests.support.contents import ready_version


@pytest.fixture
def endpoint(cast: Cast) -> Endpoint:
    version = ready_version(cast.actor("owner"), cast.red)
    return actions.deploy(version=version, actor=cast.actor("owner"), replicas=2)


def set_replicas(phase: str, wanted: str = "run") -> None:
    deployment = Deployment.objects.get()
    host, _ = Host.objects.get_or_create(name="h")
    Replica.objects.all().delete()
    Replica.objects.create(deployment=deployment, host=host, phase=phase, wanted=wanted, message="it broke")


def call(path: str, headers: dict[str, str], body: Any = None, content_type: str = "") -> Any:
    data = "" if body is None else json.dumps(body)
    return Client().generic("POST", f"/v2/repository/{path}", data, content_type=content_type, headers=headers)


@pytest.mark.parametrize(
    ("wanted", "phases", "state", "reason"),
    [
        (1, [("run", "ready", "")], "READY", ""),
        (2, [("run", "failed", "x"), ("run", "ready", "")], "READY", ""),
        (1, [], "LOADING", "no host"),
        (1, [("run", "warming", "")], "LOADING", "no host"),
        (1, [("run", "failed", "it broke")], "UNAVAILABLE", "it broke"),
        (2, [("run", "failed", ""), ("run", "loading", "")], "LOADING", "no host"),
        (0, [("stop", "draining", "")], "UNLOADING", ""),
        (0, [("stop", "ready", "")], "UNLOADING", ""),
        (0, [("stop", "stopped", "")], "UNAVAILABLE", "unloaded"),
        (0, [], "UNAVAILABLE", "unloaded"),
    ],
)
def test_the_four_states(wanted: int, phases: list[tuple[str, str, str]], state: str, reason: str) -> None:
    assert standing_of(wanted, phases, "no host") == Standing(state, reason)


def test_the_index_lists_what_the_key_may_see(cast: Cast, endpoint: Endpoint) -> None:
    set_replicas("ready")
    line = {"name": "digits", "version": "1", "state": "READY", "reason": ""}
    for body in (None, {}, {"ready": True}):
        assert call("index", cast.bearer("teammate"), body).json() == [line]
    assert call("index", cast.bearer("stranger")).json() == []
    assert call("index", cast.bearer("developer", endpoints=["other"])).json() == []
    set_replicas("loading")
    assert call("index", cast.bearer("teammate")).json() == [line | {"state": "LOADING"}]
    assert call("index", cast.bearer("teammate"), {"ready": True}).json() == []


def test_unload_stops_the_replicas_and_load_brings_as_many_back(cast: Cast, endpoint: Endpoint) -> None:
    root = cast.bearer("owner")
    answer = call("models/digits/unload", root, {"parameters": {"unload_dependents": False}})
    assert (answer.status_code, answer.content) == (200, b"")
    assert Deployment.objects.get().replicas == 0
    assert Variant.objects.get().resting_replicas == 2
    set_replicas("ready")  # as if they came up at once
    answer = call("models/digits/load", root)
    assert (answer.status_code, answer.content) == (200, b"")
    assert Deployment.objects.get().replicas == 2
    assert Variant.objects.get().resting_replicas == 0
    assert set(AuditEntry.objects.values_list("verb", flat=True)) >= {"load", "unload"}


def test_a_load_that_fails_says_why_in_tritons_words(cast: Cast, endpoint: Endpoint) -> None:
    set_replicas("failed")
    answer = call("models/digits/load", cast.bearer("owner"))
    assert answer.status_code == 400
    assert answer.json() == {"error": "failed to load 'digits', it broke"}


def test_a_load_is_waited_for_until_its_deadline(cast: Cast, endpoint: Endpoint, settings: Any) -> None:
    settings.MODEL_LOAD_TIMEOUT_S = 0.3
    set_replicas("warming")
    began = time.monotonic()
    answer = call("models/digits/load", cast.bearer("owner"))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("failed to load 'digits', ")
    assert time.monotonic() - began >= 0.3


def test_an_unknown_model_is_told_as_triton_tells_it(cast: Cast, endpoint: Endpoint) -> None:
    answer = call("models/nobody/load", cast.bearer("owner"))
    assert answer.status_code == 404
    assert answer.json() == {"error": "failed to load 'nobody', failed to poll from model repository"}
    # What others own is as unknown.
    answer = call("models/digits/load", cast.bearer("stranger"))
    assert answer.json() == {"error": "failed to load 'digits', failed to poll from model repository"}
    assert call("models/digits/unload", cast.bearer("stranger")).status_code == 404


def test_it_needs_the_right_to_operate(cast: Cast, endpoint: Endpoint) -> None:
    for verb in ("load", "unload"):
        answer = call(f"models/digits/{verb}", cast.bearer("developer"))
        assert answer.status_code == 403
        assert "operate" in answer.json()["error"]
    assert Deployment.objects.get().replicas == 2
    assert call("models/digits/load", {}).status_code == 401


@pytest.mark.parametrize("mode", ["poll", "none"])
def test_only_explicit_control_allows_it(cast: Cast, endpoint: Endpoint, settings: Any, mode: str) -> None:
    settings.MODEL_CONTROL_MODE = mode
    for verb in ("load", "unload"):
        answer = call(f"models/digits/{verb}", cast.bearer("owner"))
        assert answer.status_code == 503
        assert answer.json() == {"error": "explicit model load / unload is not allowed if polling is enabled"}
    assert call("index", cast.bearer("owner")).status_code == 200


@pytest.mark.parametrize(
    ("verb", "parameters", "words"),
    [
        ("load", {"config": "{}"}, "'digits' is none: upload a version with other settings instead"),
        ("load", {"config": 5}, "parameter 'config' must be a text of JSON"),
        (
            "load",
            {"config": "{}", "file:1/model.onnx": "QQ=="},
            "'file:1/model.onnx' is not supported: change the files",
        ),
        ("unload", {"unload_dependents": True}, "'unload_dependents' may only be false"),
    ],
    ids=["config", "no text", "file", "dependents"],
)
def test_what_would_be_passed_over_is_refused_by_name(
    cast: Cast, endpoint: Endpoint, verb: str, parameters: dict[str, Any], words: str
) -> None:
    answer = call(f"models/digits/{verb}", cast.bearer("owner"), {"parameters": parameters})
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert Deployment.objects.get().replicas == 2


def test_a_version_that_another_endpoint_serves_is_not_stopped(cast: Cast, endpoint: Endpoint) -> None:
    version = Variant.objects.get().version
    actions.deploy(version=version, endpoint_name="twin", actor=cast.actor("owner"))
    answer = call("models/twin/unload", cast.bearer("owner"))
    assert answer.status_code == 400
    assert "digits" in answer.json()["error"]


def test_a_folders_models_are_listed_until_they_are_loaded(cast: Cast, endpoint: Endpoint) -> None:
    rows = repository.list_folder(SYSTEM, cast.red, ["digits", "other"])
    assert [row.name for row in rows] == ["digits", "other"]
    lines = repository.index(cast.actor("teammate"))
    assert [(line["name"], line["version"]) for line in lines] == [("digits", "1"), ("other", "")]
    assert lines[1]["state"] == "UNAVAILABLE"
    repository.list_folder(SYSTEM, cast.red, ["digits"])
    assert [row.name for row in RepositoryModel.objects.all()] == ["digits"]
    with pytest.raises(Forbidden):
        repository.list_folder(cast.actor("owner"), cast.red, [])


@pytest.mark.django_db(transaction=True)
def test_a_load_waits_for_the_folders_process(cast: Cast) -> None:
    repository.list_folder(SYSTEM, cast.red, ["digits", "bad"])
    owner = cast.actor("owner")

    def process() -> None:
        try:
            for name, reason in (("digits", ""), ("bad", "field 'x' of config.pbtxt is not supported")):
                while not RepositoryModel.objects.filter(name=name, asked=1).exists():
                    time.sleep(0.02)
                if not reason:
                    version = ready_version(owner, cast.red)
                    actions.deploy(version=version, actor=owner)
                    set_replicas("ready")
                repository.answer_wish(SYSTEM, name, 1, reason)
        finally:
            connection.close()

    thread = threading.Thread(target=process)
    thread.start()
    repository.load(owner, "digits", timeout_s=20)
    with pytest.raises(Conflict, match=r"failed to load 'bad', field 'x' of config\.pbtxt"):
        repository.load(owner, "bad", timeout_s=20)
    thread.join()
    assert Deployment.objects.get().replicas == 1


@pytest.mark.django_db(transaction=True)
def test_a_loads_config_holds_until_the_unload_and_a_bad_one_changes_nothing(cast: Cast) -> None:
    repository.list_folder(SYSTEM, cast.red, ["digits"])
    owner = cast.actor("owner")
    row = RepositoryModel.objects.filter(name="digits")
    seen = []

    def process() -> None:
        """Answers the loads one by one: the third config is bad."""
        try:
            for number in range(1, 5):
                while not row.filter(asked=number).exists():
                    time.sleep(0.02)
                seen.append(row.get().config)
                if number == 1:
                    actions.deploy(version=ready_version(owner, cast.red), actor=owner)
                set_replicas("ready")
                repository.answer_wish(SYSTEM, "digits", number, "no such field" if number == 3 else "")
        finally:
            connection.close()

    thread = threading.Thread(target=process)
    thread.start()
    repository.load(owner, "digits", config='{"max_batch_size": "16"}', timeout_s=20)
    repository.load(owner, "digits", timeout_s=20)
    with pytest.raises(Conflict, match="failed to load 'digits', no such field"):
        repository.load(owner, "digits", config='{"nope": 1}', timeout_s=20)
    assert row.get().config == '{"max_batch_size": "16"}'
    repository.unload(owner, "digits")
    assert row.get().config == ""
    repository.load(owner, "digits", timeout_s=20)
    thread.join()
    assert seen == ['{"max_batch_size": "16"}', '{"max_batch_size": "16"}', '{"nope": 1}', ""]
    asked = AuditEntry.objects.filter(verb="ask_load").order_by("id")
    assert [one.after.get("config") for one in asked] == ['{"max_batch_size": "16"}', None, '{"nope": 1}', None]


def test_an_answer_to_no_wish_is_refused(cast: Cast) -> None:
    repository.list_folder(SYSTEM, cast.red, ["digits"])
    with pytest.raises(Conflict):
        repository.answer_wish(SYSTEM, "digits", 1, "")
    with pytest.raises(NotFound):
        repository.answer_wish(SYSTEM, "nobody", 1, "")
