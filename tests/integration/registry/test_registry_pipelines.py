"""Pipelines as versions: judged at once, pinned for ever, and holding the versions that they are made of."""

from __future__ import annotations

import msgspec
import pytest
from django.test import Client

from accounts.models import AuditEntry
from inference.artifacts.manifest import Manifest, digest_of
from inference.errors import ClientError, Conflict
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.pipelines import Pipeline, decode
from inference.protocol.settings import SequenceSettings
from registry import actions
from registry.models import PipelineStep, ValidationRun, Version, VersionStatus
from registry.pipelines import steps_of
from registry.storage import store
from tests.support.cast import Cast
from tests.support.contents import new_version, ready_version, validated
from tests.support.pipelines import chain, created, step, tensor


@pytest.fixture
def ab(cast: Cast) -> tuple[Version, Version]:
    """Two models with a ready version each: x -> y, batches of 8."""
    owner = cast.actor("owner")
    return tuple(ready_version(owner, cast.red, name=name) for name in "ab")  # type: ignore[return-value]


def stored(version: Version) -> Pipeline:
    (file,) = version.manifest["files"]
    return decode(store().path(file["sha256"]).read_bytes())


def test_it_is_ready_at_once_with_its_steps_and_without_a_host(cast: Cast, ab: tuple[Version, Version]) -> None:
    version = created(cast.actor("developer"), cast.red, chain("a", "b"), alias="champion")
    assert (version.status, version.format, version.tier) == (VersionStatus.READY, "pipeline", "data")
    assert [row.name for row in version.steps.all()] == ["a", "b"]
    assert steps_of(version) == list(ab)
    assert version.signature["max_batch_size"] == 8
    assert version.signature["platform"] == "ensemble"
    assert [check["state"] for check in version.report["checks"]] == ["passed"] * 4
    assert not ValidationRun.objects.filter(version=version).exists()
    assert version.aliases.get().name == "champion"
    assert AuditEntry.objects.filter(verb="validate_version", object_name=str(version)).exists()


def test_an_alias_and_the_newest_are_pinned_to_numbers(cast: Cast, ab: tuple[Version, Version]) -> None:
    """What it means never changes, and what it is made of is in its digest."""
    owner = cast.actor("owner")
    actions.set_alias(actor=owner, model=ab[0].model, name="best", version=ab[0])
    ready_version(owner, cast.red, b"[2]", name="a")
    second = ready_version(owner, cast.red, b"[2]", name="b")
    validated(new_version(owner, cast.red, b"[3]", name="b"), "rejected", reason="no")
    wish = chain("a", "b")
    wish = msgspec.structs.replace(wish, steps=[msgspec.structs.replace(wish.steps[0], alias="best"), wish.steps[1]])
    first = created(owner, cast.red, wish)
    assert [(one.version, one.alias) for one in stored(first).steps] == [(1, ""), (second.number, "")]
    assert first.digest == digest_of(msgspec.convert(first.manifest, Manifest))
    with pytest.raises(Conflict, match="chain:1 already has exactly these files"):
        created(owner, cast.red, wish)
    ready_version(owner, cast.red, b"[4]", name="b")
    newer = created(owner, cast.red, wish)
    assert [one.version for one in stored(newer).steps] == [1, 4]
    assert [one.version for one in stored(first).steps] == [1, 2]
    assert created(owner, cast.red, chain("a", "b", batch=2)).signature["max_batch_size"] == 2


REFUSED = {
    "nothing of it": (b"{", "read", "pipeline.json is not valid JSON"),
    "a circle": (
        Pipeline(
            inputs=[tensor("raw")],
            outputs=[tensor("out")],
            steps=[step("a", {"x": "t"}, "out"), step("b", {"x": "raw", "z": "out"}, "t")],
        ),
        "graph",
        "steps wait for each other in a circle: a <- b <- a",
    ),
    "no such model": (chain("a", "ghost"), "steps", "step 'ghost': team red has no model 'ghost' with a version"),
    "another team's": (chain("a", "theirs"), "steps", "step 'theirs': team red has no model 'theirs' with a version"),
    "no such version": (
        Pipeline([tensor("raw")], [tensor("out")], [step("a", "raw", "out", version=9)]),
        "steps",
        "step 'a': model 'a' has no version 9",
    ),
    "no such alias": (
        Pipeline([tensor("raw")], [tensor("out")], [step("a", "raw", "out", alias="best")]),
        "steps",
        "step 'a': model 'a' has no alias 'best'",
    ),
    "both": (
        Pipeline([tensor("raw")], [tensor("out")], [step("a", "raw", "out", alias="best", version=1)]),
        "steps",
        "step 'a': it names both a version and an alias",
    ),
    "one that is being checked": (
        Pipeline([tensor("raw")], [tensor("out")], [step("late", "raw", "out", version=1)]),
        "steps",
        "step 'late': late:1 is validating, and only a ready version can be a step",
    ),
    "none that is ready": (chain("late"), "steps", "step 'late': model 'late' has no ready version"),
    "shapes": (
        Pipeline([tensor("raw", [-1, 3])], [tensor("out")], [step("a", "raw", "out")]),
        "tensors",
        "step 'a': input 'x' has the shape [-1, 4], but tensor 'raw' has [-1, 3]",
    ),
    "batches": (chain("a", "b", batch=9), "tensors", "step 'a' takes batches of 8 at most, the pipeline 9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rejected_pipeline_says_which_step_and_why(cast: Cast, ab: tuple[Version, Version], name: str) -> None:
    ready_version(cast.actor("stranger"), cast.blue, name="theirs")
    new_version(cast.actor("owner"), cast.red, name="late")
    pipeline, check, words = REFUSED[name]
    version = created(cast.actor("owner"), cast.red, pipeline, alias="champion")
    assert version.status == VersionStatus.REJECTED
    assert words in version.reason
    assert version.remedy
    failed = [one for one in version.report["checks"] if one["state"] == "failed"]
    assert [(one["name"], one["message"]) for one in failed] == [(check, version.reason)]
    assert not PipelineStep.objects.exists()
    assert not version.aliases.exists()


def test_a_pipeline_of_pipelines_is_stored_flat(cast: Cast, ab: tuple[Version, Version]) -> None:
    owner = cast.actor("owner")
    created(owner, cast.red, chain("a", "b"), name="inner")
    twice = Pipeline(
        [tensor("raw")],
        [tensor("out")],
        [step("inner", {"raw": "raw"}, {"out": "t"}), step("again", {"raw": "t"}, {"out": "out"}, model="inner")],
    )
    middle = created(owner, cast.red, twice, name="middle")
    assert (middle.status, middle.reason) == (VersionStatus.READY, "")
    deep = Pipeline(
        [tensor("raw")],
        [tensor("out")],
        [step("first", {"raw": "raw"}, {"out": "t"}, model="middle"), step("a", "t", "out")],
    )
    version = created(owner, cast.red, deep, name="outer")
    names = ["first.inner.a", "first.inner.b", "first.again.a", "first.again.b", "a"]
    assert [row.name for row in version.steps.all()] == names == [one.name for one in stored(version).steps]
    assert steps_of(version) == list(ab)
    assert version.signature["max_batch_size"] == 8
    with pytest.raises(Conflict, match="a:1 is in use by a pipeline"):
        actions.archive_version(actor=owner, version=ab[0])


def test_a_nested_pipeline_is_refused_in_the_words_of_its_author(cast: Cast, ab: tuple[Version, Version]) -> None:
    owner = cast.actor("owner")
    created(owner, cast.red, chain("a", "b", batch=4), name="inner")

    def reason(**more: object) -> str:
        nested = Pipeline([tensor("raw")], [tensor("out")], [step("inner", {"raw": "raw"}, {"out": "out"})])
        return str(created(owner, cast.red, msgspec.structs.replace(nested, **more), name="outer").reason)

    assert "step 'inner' takes batches of 4 at most, the pipeline 8" in reason(max_batch_size=8)
    assert "step 'inner': inner:1 has no output 'y'; it has 'out'" in reason(
        steps=[step("inner", {"raw": "raw"}, {"y": "out"})]
    )
    assert "step 'inner': input 'raw' has the shape [-1, 4]" in reason(inputs=[tensor("raw", [-1, 3])])
    actions.archive_version(actor=owner, version=Version.objects.get(model__name="inner"))
    assert "step 'inner': inner:1 is archived, and only a ready version can be a step" in reason(
        steps=[step("inner", {"raw": "raw"}, {"out": "out"}, version=1)]
    )


def test_stateful_steps_are_refused(cast: Cast, ab: tuple[Version, Version]) -> None:
    owner = cast.actor("owner")
    stateful = {"sequence": msgspec.to_builtins(SequenceSettings())}
    ready_version(owner, cast.red, b"[7]", name="vad", settings=stateful)
    assert "vad:1 keeps state" in created(owner, cast.red, chain("vad"), name="outer").reason
    ready_version(owner, cast.red, b"[7]", name="many", settings={"decoupled": True})
    assert "many:1 gives any number of answers" in created(owner, cast.red, chain("many"), name="outer").reason


def test_steps_stay_while_a_living_pipeline_needs_them(cast: Cast, ab: tuple[Version, Version]) -> None:
    owner = cast.actor("owner")
    version = created(owner, cast.red, chain("a", "b"))
    with pytest.raises(Conflict, match=r"a:1 is in use by a pipeline \(chain:1, step a\)"):
        actions.archive_version(actor=owner, version=ab[0])
    actions.archive_version(actor=owner, version=version)
    actions.archive_version(actor=owner, version=ab[0])
    assert [row.version for row in version.steps.all()] == list(ab)


def test_settings_belong_to_the_steps(cast: Cast, ab: tuple[Version, Version]) -> None:
    with pytest.raises(ClientError, match="a pipeline has no settings of its own \\(window_ms\\)"):
        created(cast.actor("owner"), cast.red, chain("a", "b"), settings={"window_ms": 1.0})
    assert not Version.objects.filter(model__name="chain").exists()


def test_two_steps_may_run_the_same_version(cast: Cast, ab: tuple[Version, Version]) -> None:
    twice = Pipeline(
        [tensor("raw")], [tensor("out")], [step("one", "raw", "t", model="a"), step("two", "t", "out", model="a")]
    )
    version = created(cast.actor("owner"), cast.red, twice)
    assert version.status == VersionStatus.READY
    assert steps_of(version) == [ab[0]]


def test_another_name_and_types_that_differ(cast: Cast, ab: tuple[Version, Version]) -> None:
    owner = cast.actor("owner")
    whole = Signature([TensorSpec("x", "INT64", [-1, 4])], [TensorSpec("y", "INT64", [-1, 4])], 8)
    validated(new_version(owner, cast.red, b"[5]", name="ints"), signature=whole)
    version = created(owner, cast.red, chain("a", "ints"))
    assert "step 'ints': input 'x' is INT64, but tensor 't1' is FP32" in version.reason


def test_the_api_tells_the_steps(cast: Cast, ab: tuple[Version, Version], client: Client) -> None:
    created(cast.actor("owner"), cast.red, chain("a", "b"))
    client.force_login(cast.teammate)
    shown = client.get("/api/models/chain/versions/1/").json()
    assert shown["steps"] == [{"name": name, "model": name, "version": 1} for name in "ab"]
    assert client.get("/api/models/a/versions/1/").json()["steps"] == []
