"""A console full of things: models in every state, endpoints with traffic, hosts, keys, a trail. All of it seeded."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

from django.utils import timezone

from accounts import actions as accounts
from accounts.audit import record
from accounts.permissions import SYSTEM
from endpoints.models import Endpoint, Variant
from fleet.models import Deployment, Device, Host, Replica
from inference.protocol.samples import bucket_of
from jobs.models import Batch
from registry.models import Alias, AliasChange, GoldenInput, Model, ValidationRun, Version
from telemetry.models import StoredSample
from tests.support.batches import begin, jsonl, line, upload
from tests.support.cast import Cast
from tests.support.pipelines import created

HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
CHECKS = ["hashes", "parse", "load", "signature", "warm up", "latency"]
IMAGE = {
    "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
    "max_batch_size": 64,
    "buckets": [1, 8, 64],
    "platforms": ["cpu", "cuda"],
    "platform": "torch_export",
    "labels": [str(digit) for digit in range(10)],
}
TEXT = IMAGE | {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}],
    "platform": "hf_encoder",
    "labels": [],
}


def checks(*, until: int = 6, last: str = "passed", message: str = "", remedy: str = "") -> list[dict[str, Any]]:
    done = [
        {"name": name, "state": "passed", "message": "", "remedy": "", "ms": 12.5 * i + 3}
        for i, name in enumerate(CHECKS)
    ]
    found = done[:until]
    if last != "passed":
        found.append({"name": CHECKS[until], "state": last, "message": message, "remedy": remedy, "ms": 0.0})
    return found


def report(**options: Any) -> dict[str, Any]:
    latency = {"1": 1.9, "8": 4.4, "32": 11.7, "64": 21.2}
    measured = {"load_ms": 840.0, "peak_memory_bytes": 412 << 20, "latency_ms": latency}
    return {"checks": checks(**options), "measurements": measured, "host": "atlas", "attempts": 1}


def version(model: Model, cast: Cast, **fields: Any) -> Version:
    """The next version of the model, with the fields of a ready one unless told otherwise."""
    number = model.next_number
    Model.objects.filter(pk=model.pk).update(next_number=number + 1)
    model.next_number = number + 1
    files = [
        {"path": "model.pt2", "size_bytes": 4_812_331, "sha256": f"{number:064x}"},
        {"path": "labels.json", "size_bytes": 212, "sha256": f"{number + 77:064x}"},
    ]
    defaults: dict[str, Any] = {
        "status": "ready", "digest": f"{model.pk * 1000 + number:064x}", "manifest": {"files": files}, "format": "torch_export",
        "tier": "checked", "signature": IMAGE, "report": report(), "size_bytes": 4_812_543, "creator": "owner",
        "created_by": cast.owner, "settings": {"max_batch_size": 64, "window_ms": 5.0, "buckets": [1, 8, 64], "task": ""},
    }  # fmt: skip
    return Version.objects.create(model=model, number=number, **(defaults | fields))


def furnish(cast: Cast, *, traffic: bool = True) -> None:
    """Fills the console for team red; team blue has one model of its own."""
    digits = Model.objects.create(
        name="digits", team=cast.red, task="image-classification", created_by=cast.owner,
        description="# Handwritten digits\n\nTells **ten digits** apart.\n\n- 8 by 8 pixels\n- trained in seconds\n\n" + HOSTILE,
    )  # fmt: skip
    first, second = version(digits, cast), version(digits, cast, format="jax_export")
    cause, way_out = f"weights.bin is a pickle {HOSTILE}", "Convert it: serinus convert digits 3"
    version(digits, cast, status="rejected", signature=None, reason=cause, remedy=way_out, tier="", format="torch_pickle",
            report=report(until=1, last="failed", message=cause, remedy=way_out))  # fmt: skip
    checking = version(digits, cast, status="validating", report=None, signature=None, format="", tier="", settings={})
    ValidationRun.objects.create(
        version=checking, state="running", host="atlas", checks=checks(until=2, last="running")
    )
    version(
        digits,
        cast,
        status="awaiting_approval",
        tier="code",
        format="torchscript",
        report=None,
        signature=None,
        creator="developer",
        created_by=cast.developer,
    )
    Alias.objects.create(model=digits, name="champion", version=first)
    AliasChange.objects.create(model=digits, name="champion", to_version=first, actor="owner", reason="best so far")
    GoldenInput.objects.create(
        model=digits, name="a-clear-seven", created_by="owner", source_version=1,
        inputs=[{"name": "pixels", "datatype": "FP32", "shape": [1, 1], "data": [7.0]}],
        outputs=[{"name": "scores", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}],
    )  # fmt: skip
    minilm = Model.objects.create(name="minilm", team=cast.red, task="feature-extraction", created_by=cast.owner)
    words = version(minilm, cast, signature=TEXT, format="hf_encoder", tier="data")
    Model.objects.create(name="secret-blue", team=cast.blue, created_by=cast.stranger)
    _serve(cast, digits, {first: 9000, second: 1000})
    _serve(cast, minilm, {words: 10_000})
    _house([first, second, words])
    _waiting(version(minilm, cast, signature=TEXT, format="hf_encoder", tier="data"))
    accounts.create_key(actor=SYSTEM, name="web-shop", team=cast.red, endpoints=["digits"])
    accounts.create_key(
        actor=SYSTEM,
        name=HOSTILE[:100],
        team=cast.red,
        role="developer",
        expires_at=timezone.now() + timedelta(days=30),
    )
    record(
        cast.actor("owner"),
        "set_weights",
        "endpoint",
        "digits",
        team=cast.red,
        before={"weights": {"1": 10_000}},
        after={"weights": {"1": 9000, "2": 1000}},
        reason=HOSTILE[:400],
    )
    if traffic:
        _traffic()
    _jobs(cast)


def _jobs(cast: Cast) -> None:
    """A batch that runs, one that is done but for two lines, one whose file was wrong."""
    begun = {"in_progress_at": timezone.now() - timedelta(seconds=100)}
    running = begin(cast.actor("owner"), [line(n) for n in range(40)], team=cast.red)
    Batch.objects.filter(pk=running.pk).update(status="in_progress", total=4000, completed=990, failed=10, **begun)
    done = begin(cast.actor("owner"), [line(n) for n in range(3)], team=cast.red)
    rows = [
        {
            "custom_id": HOSTILE,
            "response": None,
            "error": {"code": "server_error", "message": "The connection was lost."},
        },
        {"custom_id": "id-2", "response": {"status_code": 404, "body": {"error": {"message": HOSTILE}}}, "error": None},
    ]
    errors = upload(cast.actor("owner"), jsonl(rows), cast.red)
    changes = {"output_file": upload(cast.actor("owner"), b"{}", cast.red), "error_file": errors, "model": HOSTILE}
    Batch.objects.filter(pk=done.pk).update(
        status="completed", total=3, completed=1, failed=2, ended_at=timezone.now(), **begun, **changes
    )
    wrong = begin(cast.actor("owner"), [line(0)], team=cast.red)
    told = [{"code": "invalid_json_line", "message": HOSTILE, "line": 1, "param": None}]
    Batch.objects.filter(pk=wrong.pk).update(status="failed", errors=told, ended_at=timezone.now())


def furnish_pipeline(cast: Cast) -> Version:
    """A pipeline `reviews` with branches behind an endpoint, with traffic; its last step has no replica."""
    shapes = {"clean": ("BYTES", [-1], "BYTES", [-1]), "embed": ("BYTES", [-1], "FP32", [-1, 384]),
              "classify-sentiment": ("FP32", [-1, 384], "FP32", [-1, 2]), "topics": ("FP32", [-1, 384], "FP32", [-1, 9])}  # fmt: skip
    for name, (reads, there, makes, shape) in shapes.items():
        model = Model.objects.create(name=name, team=cast.red, created_by=cast.owner)
        signature = {
            "inputs": [{"name": "x", "datatype": reads, "shape": there}],
            "outputs": [{"name": "y", "datatype": makes, "shape": shape}],
            "max_batch_size": 32,
            "platform": name,
        }
        held = version(model, cast, signature=signature)
        wish = Deployment.objects.create(version=held, replicas=1)
        if name != "topics":
            Replica.objects.create(deployment=wish, phase="ready", ready_at=timezone.now(), memory_bytes=300 << 20)
    made = created(cast.actor("owner"), cast.red, json.dumps(REVIEWS).encode(), name="reviews")
    _serve(cast, made.model, {made: 10_000})
    now = timezone.now().replace(microsecond=0)
    rows = []
    for back in range(60):
        for place, name in enumerate(("reviews", *(f"reviews/{name}" for name in shapes))):
            counts = {str(bucket_of(3.0 + 4 * place)): 50}
            rows.append(
                StoredSample(
                    source="gateway-2", sequence=len(rows), at=now - timedelta(seconds=back), endpoint=name, version=1,
                    arm="primary", requests=50, latency_counts=counts,
                )
            )  # fmt: skip
    StoredSample.objects.bulk_create(rows)
    return made


REVIEWS = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "sentiment", "datatype": "FP32", "shape": [-1, 2], "labels": ["bad", "good"]},
        {"name": "topics", "datatype": "FP32", "shape": [-1, 9]},
        {"name": "vector", "datatype": "FP32", "shape": [-1, 384]},
    ],
    "steps": [
        {"name": "clean", "model": "clean", "input_map": {"x": "text"}, "output_map": {"y": "clean text"}},
        {"name": "embed", "model": "embed", "input_map": {"x": "clean text"}, "output_map": {"y": "vector"}},
        {
            "name": "classify-sentiment",
            "model": "classify-sentiment",
            "input_map": {"x": "vector"},
            "output_map": {"y": "sentiment"},
        },
        {"name": "topics", "model": "topics", "input_map": {"x": "vector"}, "output_map": {"y": "topics"}},
    ],
}


def _serve(cast: Cast, model: Model, shares: dict[Version, int]) -> None:
    endpoint = Endpoint.objects.create(name=model.name, team=cast.red, model=model, salt="salt", created_by=cast.owner)
    for place, (held, share) in enumerate(shares.items()):
        Variant.objects.create(endpoint=endpoint, version=held, weight_bp=share, role="canary" if place else "primary")


def _house(served: list[Version]) -> None:
    lease = timezone.now() + timedelta(hours=1)
    atlas = Host.objects.create(name="atlas", lease_until=lease, cpus=16, standby_ready=True)
    Host.objects.create(name="borea", lease_until=timezone.now() - timedelta(minutes=3), cpus=8)
    for name, kind, total, free in (("cpu", "cpu", 64 << 30, 30 << 30), ("cuda:0", "cuda", 80 << 30, 4 << 30)):
        Device.objects.create(
            host=atlas,
            name=name,
            kind=kind,
            memory_total_bytes=total,
            memory_free_bytes=free,
            utilisation=0.42,
            description="A device",
        )
    for place, held in enumerate(served):
        wish = Deployment.objects.create(version=held, replicas=2)
        for number in range(2):
            Replica.objects.create(
                deployment=wish, host=atlas, device="cuda:0" if place == 1 else "cpu", phase="ready" if number == 0 else "backoff",
                ready_at=timezone.now(), memory_bytes=300 << 20, pid=4000 + place, queue_depth=7 if number == 0 else 0, restarts=number * 3,
                message="" if number == 0 else f"the process ended with signal 11 {HOSTILE}",
            )  # fmt: skip


def _waiting(held: Version) -> None:
    Deployment.objects.create(version=held, replicas=1, device="tpu", reason="no host has a TPU")


def _traffic() -> None:
    chance = random.Random(7)
    now = timezone.now().replace(microsecond=0)
    rows = []
    for back in range(300):
        for endpoint, number, rate, base in (("digits", 1, 180, 6), ("digits", 2, 20, 9), ("minilm", 1, 45, 22)):
            counts: dict[int, int] = {}
            requests = max(1, int(rate * (1 + 0.2 * chance.random()) * (1 if back > 60 else 1.4)))
            for _ in range(12):
                bucket = bucket_of(base * chance.lognormvariate(0, 0.35))
                counts[bucket] = counts.get(bucket, 0) + requests // 12 + 1
            rows.append(
                StoredSample(
                    source="gateway-1",
                    sequence=len(rows),
                    at=now - timedelta(seconds=back),
                    endpoint=endpoint,
                    version=number,
                    arm="primary" if number == 1 else "canary",
                    requests=requests,
                    errors=int(back % 97 == 0),
                    latency_counts={str(bucket): count for bucket, count in counts.items()},
                    queue_sum_ms=sum(counts.values()) * base * 0.3 * (1 + 0.3 * chance.random()),
                    input_sum_ms=sum(counts.values()) * base * 0.06,
                    compute_sum_ms=sum(counts.values()) * base * 0.5 * (1 + 0.1 * chance.random()),
                    output_sum_ms=sum(counts.values()) * base * 0.04,
                    batch_counts={"0": requests // 9 + 1, "3": requests // 2, "7": requests // 3, "11": 2},
                )
            )
    StoredSample.objects.bulk_create(rows)
