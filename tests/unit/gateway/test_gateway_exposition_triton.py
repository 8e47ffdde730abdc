from inference.gateway.exposition_triton import Sums, values
from inference.gateway.statistics_json import model_statistics
from inference.protocol.statistics import BatchStatistics, Duration, ModelStatistics, ResponseStatistics


def told(count: int, depth: int = 0) -> ModelStatistics:
    found = ModelStatistics(inference_count=2 * count, execution_count=count, queue_depth=depth, memory={"cuda:1": 5})
    for one in (found.success, found.queue, found.compute_input, found.compute_infer, found.compute_output):
        one.add(1000 * count, count)
    return found


def test_counters_never_fall_when_replicas_are_restarted_or_leave() -> None:
    sums = Sums()
    sums.tell("a@1", told(5, depth=3))
    sums.tell("b@1", told(7))
    assert values(sums.total())["nv_inference_request_success"] == 12
    sums.tell("a@1", told(2, depth=1))  # started anew under the same id
    found = values(sums.total())
    assert (found["nv_inference_request_success"], found["nv_inference_pending_request_count"]) == (14, 1)
    sums.keep({"a@1"})
    sums.tell("a@1", told(3))
    assert values(sums.total())["nv_inference_exec_count"] == 15
    assert values(sums.total())["nv_inference_count"] == 30
    assert values(sums.total())["nv_inference_queue_duration_us"] == 15
    assert sums.total().memory == {"cuda:1": 5}


def test_statistics_have_tritons_shape() -> None:
    sums = told(3)
    sums.last_inference_ms = 17
    sums.batches = {size: BatchStatistics(compute_infer=Duration(size, 2)) for size in (4, 1)}
    sums.memory = {"cuda:1": 5, "cpu": 6}
    found = model_statistics("mlp", "2", sums)
    assert (found["name"], found["version"], found["last_inference"]) == ("mlp", "2", 17)
    assert (found["inference_count"], found["execution_count"]) == (6, 3)
    assert found["inference_stats"]["queue"] == found["inference_stats"]["success"] == {"count": 3, "ns": 3000}
    assert set(found["inference_stats"]) == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    nothing = {"count": 0, "ns": 0}
    assert found["batch_stats"][0] == {
        "batch_size": 1, "compute_input": nothing, "compute_infer": {"count": 1, "ns": 2}, "compute_output": nothing,
    }  # fmt: skip
    assert [one["batch_size"] for one in found["batch_stats"]] == [1, 4]
    assert found["memory_usage"] == [
        {"type": "CPU", "id": 0, "byte_size": 6},
        {"type": "GPU", "id": 1, "byte_size": 5},
    ]
    assert found["response_stats"] == {}, "of decoupled models only"
    sums.responses = {1: ResponseStatistics(), 0: ResponseStatistics(cancel=Duration(1, 9))}
    sums.responses[0].answered(7)
    sums.responses[1].ended(5)
    other = told(1)
    other.responses = {0: ResponseStatistics()}
    other.responses[0].failed(4)
    sums.merge(other)
    one = {"count": 1, "ns": 7}
    assert model_statistics("mlp", "2", sums)["response_stats"] == {
        "0": {
            "compute_infer": {"count": 2, "ns": 11}, "compute_output": {"count": 1, "ns": 0}, "success": one,
            "fail": {"count": 1, "ns": 4}, "empty_response": nothing, "cancel": {"count": 1, "ns": 9},
        },
        "1": dict.fromkeys(("compute_output", "success", "fail", "cancel"), nothing)
        | {part: {"count": 1, "ns": 5} for part in ("compute_infer", "empty_response")},
    }  # fmt: skip
