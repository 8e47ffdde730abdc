"""Golden inputs: what is saved, what is refused, and that nothing is saved by whom it does not concern."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry
from inference.errors import Conflict, Forbidden, InvalidInput, NotFound, TooLarge
from inference.protocol.routes import Comparison
from registry import actions
from registry.golden import MAX_GOLDEN, Golden, golden_prompt
from registry.models import GoldenInput
from tests.integration.test_accounts_api import of
from tests.support.cast import Cast
from tests.support.contents import ready_version
from tests.support.routes import GOLDEN

X: dict[str, Any] = GOLDEN["inputs"][0]
Y: dict[str, Any] = GOLDEN["outputs"][0]


@pytest.fixture
def model(cast: Cast) -> Any:
    return ready_version(cast.actor("owner"), cast.red).model


def save(cast: Cast, model: Any, who: str = "developer", **changes: Any) -> GoldenInput:
    given: dict[str, Any] = {"inputs": [X], "outputs": [Y]} | changes
    return actions.save_golden(actor=cast.actor(who), model=model, golden=Golden(**given))


def test_one_is_saved_and_audited(cast: Cast, model: Any) -> None:
    row = save(cast, model, name="zeros", source_version=1, comparison=Comparison("cosine", 0.2, 3))
    assert (row.inputs, row.outputs, row.comparison, row.tolerance, row.k) == ([X], [Y], "cosine", 0.2, 3)
    assert (row.source_version, row.created_by) == (1, "developer")
    entry = AuditEntry.objects.get(verb="save_golden_input")
    assert (entry.object_name, entry.after) == (
        "digits", {"name": "zeros", "source_version": 1, "comparison": "cosine"}
    )  # fmt: skip
    actions.remove_golden(actor=cast.actor("developer"), model=model, identity=row.pk)
    assert not GoldenInput.objects.exists()
    assert AuditEntry.objects.filter(verb="remove_golden_input", before__name="zeros").count() == 1


def test_names_are_free_or_refused_and_the_number_is_bounded(cast: Cast, model: Any) -> None:
    assert [save(cast, model).name for _ in range(3)] == ["golden-1", "golden-2", "golden-3"]
    with pytest.raises(Conflict, match="golden-2"):
        save(cast, model, name="golden-2")
    GoldenInput.objects.filter(name="golden-2").delete()
    assert save(cast, model).name == "golden-2"
    for _ in range(MAX_GOLDEN - 3):
        save(cast, model)
    with pytest.raises(Conflict, match="remove one first"):
        save(cast, model)
    assert GoldenInput.objects.count() == MAX_GOLDEN


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        ("inputs", {"data": [1, 2, 3]}, "3 values do not fill"),
        ("inputs", {"data": [1, 2, 3, None]}, "null stands for NaN"),
        ("inputs", {"data": [1, 2, 3, True]}, "is no FP32"),
        ("inputs", {"data": [1, 2, 3, "4"]}, "is no FP32"),
        ("inputs", {"data": "1234"}, "the data is a list"),
        ("inputs", {"datatype": "FP99"}, "is no datatype"),
        ("inputs", {"datatype": "INT8", "data": [1, 2, 3, 400]}, "is no INT8"),
        ("inputs", {"datatype": "UINT8", "data": [1, 2, 3, -4]}, "is no UINT8"),
        ("inputs", {"datatype": "INT64", "data": [1, 2, 3, 0.5]}, "is no INT64"),
        ("inputs", {"datatype": "INT32", "data": [1, 2, 3, 4]}, "is FP32, not INT32"),
        ("inputs", {"shape": [1, -4]}, "whole numbers from 0"),
        ("inputs", {"shape": [True, 4]}, "whole numbers from 0"),
        ("inputs", {"name": "z"}, "digits:1 has no input 'z'"),
        ("outputs", {"name": "z"}, "digits:1 has no output 'z'"),
        ("outputs", {"datatype": "BYTES", "data": ["a", "b", "c", "\0"]}, "is no BYTES"),
    ],
)
def test_what_is_no_tensor_is_refused(cast: Cast, model: Any, where: str, change: dict[str, Any], words: str) -> None:
    given = copy.deepcopy(GOLDEN)
    given[where][0] |= change
    with pytest.raises(InvalidInput, match=words):
        save(cast, model, **given)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"inputs": []}, InvalidInput, "1 to 64 input tensors"),
        ({"inputs": [X, X]}, InvalidInput, "given twice"),
        ({"outputs": []}, InvalidInput, "1 to 64 output tensors"),
        ({"comparison": Comparison("guess")}, InvalidInput, "no way to compare"),
        ({"comparison": Comparison("auto", 1.5)}, InvalidInput, "tolerance"),
        ({"parameters": {"a": [1]}}, InvalidInput, "parameters"),
        ({"source_version": 7}, InvalidInput, "no ready version 7"),
        ({"parameters": {"a": "x" * 300_000}}, TooLarge, "at most 262144 bytes"),
    ],
)
def test_what_is_no_golden_input_is_refused(
    cast: Cast, model: Any, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        save(cast, model, **changes)
    assert not AuditEntry.objects.filter(verb="save_golden_input").exists()


def test_nested_data_is_flattened(cast: Cast, model: Any) -> None:
    row = save(cast, model, inputs=[X | {"data": [[0, 1, 2, 3]]}])
    assert row.inputs == [X]


def test_rights(cast: Cast, model: Any) -> None:
    with pytest.raises(Forbidden):
        save(cast, model, "teammate")
    with pytest.raises(NotFound):
        save(cast, model, "stranger")
    row = save(cast, model)
    with pytest.raises(Forbidden):
        actions.remove_golden(actor=cast.actor("teammate"), model=model, identity=row.pk)
    other = ready_version(cast.actor("owner"), cast.red, name="other").model
    with pytest.raises(NotFound):
        actions.remove_golden(actor=cast.actor("owner"), model=other, identity=row.pk)


def test_by_the_api(cast: Cast, model: Any) -> None:
    developer = of(cast, "developer")
    made = developer("POST", "/api/models/digits/golden/", {**GOLDEN, "version": 1, "tolerance": 0.5}, 201)
    assert (made["name"], made["version"], made["tolerance"], made["inputs"]) == ("golden-1", 1, 0.5, [X])
    assert developer("GET", "/api/models/digits/golden/") == [made]
    place = f"/api/models/digits/golden/{made['id']}/"
    assert developer("GET", place) == made
    of(cast, "stranger")("GET", place, status=404)
    of(cast, "teammate")("DELETE", place, status=403)
    developer("DELETE", place, status=204)
    developer("DELETE", place, status=404)
    for wrong in ({}, {"inputs": [X]}, {**GOLDEN, "prompt": "p"}, {"prompt": "p"}, {**GOLDEN, "tolerance": 2}):
        developer("POST", "/api/models/digits/golden/", wrong, 400)


def test_a_prompt_with_its_text(cast: Cast) -> None:
    of(cast, "developer")("POST", "/api/models/", {"name": "talker", "team": "red"}, 201)
    body = {"prompt": "Count: one, two,", "expected": " three", "max_tokens": 4}
    made = of(cast, "developer")("POST", "/api/models/talker/golden/", body, 201)
    assert made["inputs"][0]["data"] == ["Count: one, two,"]
    assert made["outputs"][0] == {"name": "text_output", "datatype": "BYTES", "shape": [1], "data": [" three"]}
    assert made["parameters"] == {"temperature": 0.0, "max_tokens": 4}
    assert golden_prompt("p", "t").parameters["temperature"] == 0


def test_from_the_try_it_form(cast: Cast, model: Any) -> None:
    from endpoints import actions as endpoints

    endpoints.deploy(version=model.versions.get(), actor=cast.actor("owner"), endpoint_name="front")
    client = Client()
    client.force_login(cast.developer, backend="accounts.login.LimitedBackend")
    body = {"request": {"inputs": [X]}, "response": {"outputs": [Y]}, "version": "1"}
    made = client.post("/endpoints/front/golden/", body, content_type="application/json")
    assert (made.status_code, made.json()["name"]) == (201, "golden-1")
    assert GoldenInput.objects.get().source_version == 1
    page = client.get("/models/digits/").content.decode()
    assert "golden-1" in page
    assert "answered by v1" in page
    for wrong in ("x", {"request": {"inputs": [X]}}, {**body, "name": 3}, {**body, "response": []}):
        refused = client.post("/endpoints/front/golden/", wrong, content_type="application/json")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "malformed"), wrong
    client.post(f"/models/digits/golden/{made.json()['id']}/remove/")
    assert not GoldenInput.objects.exists()
    assert '"golden": "/endpoints/front/golden/"' in client.get("/endpoints/front/").content.decode()
    client.force_login(cast.teammate, backend="accounts.login.LimitedBackend")
    assert client.post("/endpoints/front/golden/", body, content_type="application/json").status_code == 403
    assert '"golden": ""' in client.get("/endpoints/front/").content.decode()
