"""/metrics of a real gateway process, read as a scraper reads it: the format, what moves, what survives restarts, and the
dashboard and alert rules that are made of it.
"""

import asyncio
import json
import re
import shutil
import signal
import socket

import grpc
import httpx
import pytest
import websockets.sync.client
import yaml

from inference.protocol import frames, generation
from inference.protocol.messages import Fault, Told
from inference.protocol.routes import EndpointRoute, VariantRoute
from inference.protocol.statistics import BatchStatistics, Duration, GenerationStatistics, Histogram, ModelStatistics
from tests.support import fake_nvml
from tests.support.exposition import faults, scraped, value
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, ROOT, TEXT, House, free_port, key, request, until

DOCS = ROOT / "docs"
ENDPOINTS = ("mlp", "gone", "slow", "held", "lm", "texts")


@pytest.fixture(scope="module")
def house():
    found = House()
    for name in ("r1", "gone", "slow", "held"):
        found.replica(name)
    found.replicas["slow"].latency_s = 0.4
    language = FakeLanguage(str(found.folder / "lm.sock"), name="lm")
    found.replicas["lm"] = found.run(language.start())
    language.statistics.generation = spoken()
    language.statistics.memory = {"cpu": 1 << 20}
    driver = found.folder / "driver"
    driver.mkdir()
    shutil.copy(fake_nvml.__file__, driver / "pynvml.py")
    found.settings = {
        "PYTHONPATH": f"{driver}:{ROOT}", "SERINUS_GRPC_PORT": str(free_port()), "SERINUS_MAX_BODY_BYTES": "100000",
    }  # fmt: skip
    gateway = found.gateway(**found.settings)
    found.publish(table(found))
    gateway.wait_live()
    for name in ENDPOINTS:
        gateway.wait_ready(name)
    yield found
    found.close()


def table(house, *, with_gone=True):
    def endpoint(name, signature=MLP, *, timeout_ms=5000, queue_limit=64, replicas=None):
        variant = VariantRoute(1, "primary", 10_000, signature, [house.route(name)] if replicas is None else replicas)
        return EndpointRoute(name, name, "salt", False, timeout_ms, queue_limit, [variant])

    others = [
        endpoint("slow", timeout_ms=100),
        endpoint("held", queue_limit=1),
        endpoint("lm", generation.language_signature()),
        endpoint("texts", TEXT, replicas=[house.route("r1")]),
        *([endpoint("gone")] if with_gone else []),
    ]
    keys = [key("all", "s2", ["*"]), key("one", "s1", ["slow"]), key("few", "s3", ["mlp"], requests_per_s=0.01)]
    return house.table(keys=keys, endpoints=others)


def spoken():
    found = GenerationStatistics(running=1, output_tokens=9, prompt_tokens=4, finished={"stop": 2}, forward_ns=10**9)
    for name in ("first_token", "next_token", "whole", "queued", "prompts", "answers"):
        times = Histogram.over((0.5, 1.0))
        times.observe(0.7)
        setattr(found, name, times)
    return found


@pytest.fixture
def gateway(house):
    yield house.gateways[-1]
    for replica in house.replicas.values():
        replica.fault = None


def soon(true):
    """Replicas are asked once a second, and a busy machine takes its time."""
    until(true, 20)


def look(gateway):
    return scraped(gateway.get("/metrics").text)


# -- the format -------------------------------------------------------------------------------------------------------


def documented():
    """Names in the tables of docs/metrics.md, ours and vLLM's, and Triton's in its text."""
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(serinus_\w+)` \|", page, re.MULTILINE)
    return {*rows, *re.findall(r"`(vllm:\w+)`", page), *re.findall(r"`(nv_\w+)`", page)}


def asked(gateway):
    """Each metric has something to tell: a gateway that has just begun counts what it is asked from now on."""
    for path, body in (("/v2/models/mlp/infer", request()), ("/v2/models/mlp/infer", {"inputs": []})):
        gateway.post(path, json=body)
    chat = {"model": "lm", "messages": [{"role": "user", "content": "a b"}], "stream": True}
    assert gateway.post("/v1/chat/completions", json=chat).status_code == 200
    for told in ("vllm:num_requests_running", "nv_gpu_power_usage", "serinus_device_memory_bytes{"):
        soon(lambda told=told: told in gateway.get("/metrics").text)


def test_every_line_keeps_the_rules_and_every_documented_name_is_there(gateway):
    asked(gateway)
    text = gateway.get("/metrics").text
    assert faults(text) == []
    families = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert {one.removesuffix("_total") for one in families} == documented()


# -- rejections -------------------------------------------------------------------------------------------------------


def chat(gateway, text):
    return gateway.post("/v1/chat/completions", json={"model": "lm", "messages": [{"role": "user", "content": text}]})


def raised(house, gateway, code, endpoint="mlp"):
    """A replica refuses it."""
    house.replicas["lm" if endpoint == "lm" else "r1"].fault = Fault(0, code, "no")
    return gateway.post(f"/v2/models/{endpoint}/infer")


def raw(gateway, data):
    with socket.create_connection(("127.0.0.1", gateway.port), 5) as sock:
        sock.sendall(data)
        sock.recv(1000)


def holding(house, gateway, act):
    """Does it while the replica holds one request; then that request's caller has left."""
    replica = house.replicas["held"]
    replica.holds = True
    with socket.create_connection(("127.0.0.1", gateway.port), 5) as sock:
        body = json.dumps(request()).encode()
        head = "POST /v2/models/held/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ser_all.s2\r\n"
        sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        soon(lambda: replica.held)
        act()
    soon(lambda: value(look(gateway), "serinus_requests_in_flight") == 0)
    house.run(released(replica))


async def released(replica):
    replica.let_go()


REASONS = {
    "unauthenticated": ("mlp", lambda _, door: door.post(key="ser_all.wrong")),
    "forbidden": ("mlp", lambda _, door: door.post(key="ser_one.s1")),
    "not_found": ("", lambda _, door: door.post("/v2/models/nobody/infer")),
    "method_not_allowed": ("mlp", lambda _, door: door.get("/v2/models/mlp/infer")),
    "malformed": ("mlp", lambda _, door: door.post(content=b"{")),
    "invalid_input": ("mlp", lambda _, door: door.post(json={"inputs": []})),
    "too_large": ("mlp", lambda _, door: door.post(content=b"x" * 100_001)),
    "unsupported_encoding": ("mlp", lambda _, door: door.post(content=b"x", headers={"content-encoding": "br"})),
    "rate_limited": ("mlp", lambda _, door: [door.post(key="ser_few.s3") for _ in range(3)]),
    "overloaded": ("held", lambda house, door: holding(house, door, lambda: door.post("/v2/models/held/infer"))),
    "cancelled": ("held", lambda house, door: holding(house, door, lambda: None)),
    "deadline_exceeded": ("slow", lambda _, door: door.post("/v2/models/slow/infer")),
    "not_ready": ("mlp", lambda house, door: raised(house, door, "not_ready")),
    "poison_input": ("mlp", lambda house, door: raised(house, door, "poison_input")),
    "unsupported": ("mlp", lambda house, door: raised(house, door, "unsupported")),
    "draining": ("mlp", lambda house, door: raised(house, door, "draining")),
    "context_length_exceeded": ("lm", lambda _, door: chat(door, "w " * 600)),
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_counted_where_it_belongs(house, gateway, reason):
    endpoint, refuse = REASONS[reason]
    count = lambda: value(look(gateway), "serinus_rejections_total", endpoint=endpoint, reason=reason)  # noqa: E731
    before = count()
    refuse(house, gateway)
    soon(lambda: count() > before)


def test_each_reason_is_documented(gateway):
    line = next(
        one for one in (DOCS / "metrics.md").read_text().splitlines() if one.startswith("| `serinus_rejections`")
    )
    assert set(REASONS) <= set(re.findall(r"`(\w+)`", line))
    assert {dict(labels)["reason"] for name, labels in look(gateway) if name == "serinus_rejections_total"} <= set(
        REASONS
    )


def test_a_refusal_is_counted_once_whatever_door(house, gateway):
    total = lambda: value(look(gateway), "serinus_rejections_total")  # noqa: E731
    before = total()
    assert gateway.post(key="ser_all.wrong", content=b"x" * 90_000).status_code == 401
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError):
            call(b"\x0a\x06nobody", metadata=[("authorization", "Bearer ser_all.s2")], timeout=5)
    url = f"ws://127.0.0.1:{gateway.port}/v2/models/mlp/stream"
    headers = {"authorization": "Bearer ser_all.s2"}
    with websockets.sync.client.connect(url, additional_headers=headers, compression=None) as stream:
        stream.send("{}")
        stream.recv(5)
    raw(gateway, b"nonsense\r\n\r\n")
    soon(lambda: total() == before + 4)


def test_names_that_callers_make_up_are_no_labels(gateway):
    with httpx.Client(base_url=gateway.url) as client:
        for number in range(50):
            for credential in ("ser_all.s2", f"ser_{number}.x"):
                headers = {"authorization": f"Bearer {credential}", "x-session-id": str(number)}
                client.post(f"/v2/models/made-up-{number}/infer", json={}, headers=headers)
                client.post(f"/v2/models/mlp/versions/{1000 + number}/infer", json={}, headers=headers)
        client.post('/v2/models/a"b%0a{}/infer', json={})
    found = look(gateway)
    assert {dict(labels).get("endpoint") for _, labels in found} <= {None, "", *ENDPOINTS}
    assert {dict(labels).get("version") for _, labels in found} <= {None, "", "1"}
    assert not [labels for _, labels in found if {"key", "session", "id"} & dict(labels).keys()]


# -- Triton's names, and restarts -------------------------------------------------------------------------------------


def lived(count, life, **more):
    found = ModelStatistics(inference_count=2 * count, execution_count=count, life=life, **more)
    for one in (found.success, found.queue, found.compute_input, found.compute_infer, found.compute_output):
        one.add(1_000_000 * count, count)
    found.batches[2] = BatchStatistics(compute_infer=Duration(count, 1))
    return found


def test_failures_bear_tritons_reasons_and_sum_up_to_the_statistics(house, gateway):
    refused = {"overloaded": 3, "deadline_exceeded": 2, "invalid_input": 4}
    house.replicas["r1"].statistics = lived(5, 1, fail=Duration(16, 0), rejected=refused, cancelled=6)
    count = lambda reason: value(  # noqa: E731
        look(gateway), "nv_inference_request_failure", model="mlp", version="1", reason=reason
    )
    soon(lambda: count("BACKEND") == 7)
    assert (count("REJECTED"), count("OTHER"), count("CANCELED")) == (5, 4, 6)
    told = gateway.get("/v2/models/mlp/stats").json()["model_stats"][0]["inference_stats"]
    assert told["fail"]["count"] == 16


def test_nothing_is_lost_or_counted_twice_when_replicas_and_the_gateway_restart(house, gateway):
    replica = house.replicas["gone"]
    count = lambda door=gateway: value(look(door), "nv_inference_request_success", model="gone")  # noqa: E731
    rows = lambda door=gateway: value(look(door), "serinus_batch_size_count", endpoint="gone")  # noqa: E731
    replica.statistics = lived(100, 1)
    soon(lambda: count() == 100)
    replica.statistics = lived(150, 2, queue_depth=3)  # a new process that has already done more than the old one
    soon(lambda: count() == 250)
    house.run(farewell(replica, lived(160, 2)))  # its last words, said after it was asked for the last time
    house.run(replica.stop())
    soon(lambda: count() == 260)
    assert value(look(gateway), "serinus_queue_depth", endpoint="gone") == 0
    replica.statistics = lived(5, 3)
    house.run(replica.start())
    soon(lambda: count() == 265 == rows())
    gateway.stop(signal.SIGKILL)
    again = house.gateway(**house.settings, SERINUS_DATA_DIR=str(gateway.folder), SERINUS_HTTP_PORT=str(gateway.port))
    again.port, again.url, again.grpc_address = gateway.port, gateway.url, gateway.grpc_address
    again.wait_live()
    soon(lambda: count(again) > 0)
    assert count(again) == 265 == rows(again)
    replica.statistics = lived(9, 3)
    soon(lambda: count(again) == 269)
    again.wait_ready("gone")
    replica.statistics = lived(20, 3)
    house.publish(table(house, with_gone=False))  # it is asked once more before its connection ends
    soon(lambda: not replica.peers)
    soon(lambda: count(again) == 280)
    assert faults(again.get("/metrics").text) == []


async def farewell(replica, statistics):
    for peer in replica.peers:
        peer.transport.write(frames.encode(Told(0, statistics)))
    await asyncio.sleep(0)


def test_a_replica_that_tells_nonsense_does_not_break_the_page_of_others(house, gateway):
    replica = house.replicas["lm"]
    before, good = look(gateway), replica.statistics
    wrong = spoken()
    wrong.whole.counts.append(1)
    named = spoken()
    named.finished = {'x"} 1\nevil 1': 1}
    for bad in (wrong, named, None):
        replica.statistics = ModelStatistics(generation=bad, success=Duration(9, 9), memory={} if bad else {'c"\n': 1})
        found = value(look(gateway), "nv_inference_request_success", model="lm")
        seen = len(gateway.log.read_text().split("cannot be"))
        soon(lambda seen=seen: len(gateway.log.read_text().split("cannot be")) > seen)
        assert value(look(gateway), "nv_inference_request_success", model="lm") == found
    assert faults(gateway.get("/metrics").text) == []
    assert set(look(gateway)) >= {one for one in before if "vllm" in one[0]}
    replica.statistics = good


def test_gpus_of_this_machine_bear_tritons_names(house, gateway):
    house.replicas["r1"].statistics.memory = {"cuda:1": 7 << 30, "cpu": 5}
    soon(lambda: value(look(gateway), "serinus_device_memory_bytes", endpoint="mlp", device="cuda:1") == 7 << 30)
    soon(lambda: value(look(gateway), "nv_gpu_utilization", gpu_uuid="GPU-aaaa") == 0.25)
    found = look(gateway)
    of = lambda name, uuid="GPU-aaaa": value(found, name, gpu_uuid=uuid)  # noqa: E731
    assert (of("nv_gpu_memory_total_bytes"), of("nv_gpu_memory_used_bytes")) == (80 << 30, 20 << 30)
    assert (of("nv_gpu_power_usage"), of("nv_gpu_power_limit"), of("nv_energy_consumption")) == (310.5, 700, 12345.678)
    assert of("nv_gpu_memory_used_bytes", "MIG-bbbb") == 21 << 30
    assert not [one for one in found if one[0] == "nv_gpu_utilization" and ("gpu_uuid", "MIG-bbbb") in one[1]]


# -- the dashboard and the alerts -------------------------------------------------------------------------------------

WORDS = {
    "and", "or", "unless", "by", "on", "ignoring", "group_left", "without", "bool", "sum", "max", "min", "avg", "count",
    "rate", "increase", "histogram_quantile", "clamp_min", "label_values", "le", "absent", "time", "topk", "changes",
}  # fmt: skip


def asked_of(query):
    """(name, labels that it is chosen by) for each metric of a PromQL expression, and all labels that it is grouped by."""
    query = re.sub(r"label_values\((\w+), (\w+)\)", r'\1{\2=""}', query)
    grouped = {
        one.strip() for found in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", query) for one in found.split(",")
    }
    plain = re.sub(r"\b(?:by|on|without)\s*\([^)]*\)|\[[^]]*\]|\$\w+", " ", query)
    metrics = [
        (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)))
        for name, labels in re.findall(r"\b((?:serinus|nv|vllm)[\w:]*)\s*(\{[^}]*\})?", plain)
    ]
    strange = (
        set(re.findall(r"\b[a-z_]{2,}\b", re.sub(r"\{[^}]*\}|\"[^\"]*\"", "", plain))) - WORDS - {n for n, _ in metrics}
    )
    return metrics, grouped - {""}, strange


def dashboard():
    found = json.loads((DOCS / "grafana" / "serinus.json").read_text())
    queries = [target["expr"] for panel in found["panels"] for target in panel.get("targets", [])]
    return found, queries + [one["query"] for one in found["templating"]["list"] if one["type"] == "query"]


def alerts():
    groups = yaml.safe_load((DOCS / "grafana" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_dashboard_and_the_alerts_ask_for_what_a_scrape_has(gateway):
    asked(gateway)
    found = look(gateway)
    labels_of = {}
    for name, labels in found:
        labels_of.setdefault(name, set()).update(dict(labels))
    queries = [*dashboard()[1], *(rule["expr"] for rule in alerts())]
    assert len(queries) > 20
    for query in queries:
        metrics, grouped, strange = asked_of(query)
        assert not strange, (strange, query)
        assert metrics, query
        for name, chosen in metrics:
            assert name in labels_of, (name, query)
            allowed = labels_of[name] | {"instance", "job"}
            assert chosen | (grouped - {"le"}) <= allowed, (name, chosen | grouped, query)
            assert "le" not in grouped or "le" in labels_of[name], query


def test_every_panel_has_words_a_unit_and_a_place_of_its_own():
    found, _ = dashboard()
    panels = [panel for panel in found["panels"] if panel["type"] != "row"]
    assert all(panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    taken = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    for rule in alerts():
        assert rule["for"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
