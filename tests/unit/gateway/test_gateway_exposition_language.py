import pytest

from inference import metrics
from inference.gateway import exposition_language
from inference.gateway.replica_sums import Sums
from inference.protocol.statistics import GenerationStatistics, Histogram, ModelStatistics


def told(tokens: int = 5) -> GenerationStatistics:
    found = GenerationStatistics(
        running=2, waiting=3, cache_usage=0.25, output_tokens=tokens, finished={"stop": 4}, forward_ns=7 * 10**9,
        first_token=Histogram.over((0.02, 0.04, 2.5)),
    )  # fmt: skip
    found.first_token.observe(0.03)
    found.first_token.observe(9999.0)
    return found


def lines(found: dict[tuple[str, str], GenerationStatistics]) -> list[str]:
    return metrics.render(exposition_language.families(found))[1].decode().splitlines()


def test_each_number_stands_under_our_name_and_vllms() -> None:
    found = lines({("lm", "1"): told(), ("lm", "2"): GenerationStatistics()})
    for line in (
        'serinus_language_running{endpoint="lm",version="1"} 2.0',
        'vllm:num_requests_running{model_name="lm",version="1"} 2.0',
        'vllm:num_requests_waiting{model_name="lm",version="1"} 3.0',
        'vllm:kv_cache_usage_perc{model_name="lm",version="1"} 0.25',
        'vllm:kv_cache_usage_perc{model_name="lm",version="2"} 0.0',
        'vllm:generation_tokens_total{model_name="lm",version="1"} 5.0',
        'vllm:request_success_total{finished_reason="stop",model_name="lm",version="1"} 4.0',
        'serinus_language_engine_seconds_total{endpoint="lm",stage="forward",version="1"} 7.0',
    ):
        assert line in found


def test_a_histogram_counts_up_to_each_bound() -> None:
    found = lines({("lm", "1"): told(), ("lm", "2"): GenerationStatistics()})
    name = "vllm:time_to_first_token_seconds"
    for bound, count in (("0.02", 0), ("0.04", 1), ("2.5", 1), ("+Inf", 2)):
        assert f'{name}_bucket{{le="{bound}",model_name="lm",version="1"}} {count}.0' in found
    assert f'{name}_count{{model_name="lm",version="1"}} 2.0' in found
    assert f'{name}_sum{{model_name="lm",version="1"}} 9999.03' in found


@pytest.mark.parametrize(
    ("kept", "vllm"),
    [
        ("whole", "vllm:e2e_request_latency_seconds"),
        ("queued", "vllm:request_queue_time_seconds"),
        ("prompts", "vllm:request_prompt_tokens"),
        ("answers", "vllm:request_generation_tokens"),
    ],
)
def test_requests_are_counted_by_time_and_size(kept: str, vllm: str) -> None:
    one, other = (GenerationStatistics(**{kept: Histogram.over((2.0, 10.0))}) for _ in range(2))
    getattr(one, kept).observe(3)
    getattr(other, kept).observe(30)
    one.merge(other)
    found = lines({("lm", "1"): one})
    for bound, count in (("2", 0), ("10", 1), ("+Inf", 2)):
        assert f'{vllm}_bucket{{le="{bound}",model_name="lm",version="1"}} {count}.0' in found
    assert f'{vllm}_sum{{model_name="lm",version="1"}} 33.0' in found


def test_there_is_nothing_where_no_language_model_is() -> None:
    assert lines({}) == []


def test_sums_outlive_their_engine_and_what_is_now_does_not() -> None:
    sums = Sums()
    sums.tell("a@1", ModelStatistics(execution_count=9, generation=told(10)))
    sums.tell("b@1", ModelStatistics(execution_count=9, generation=told(1)))
    sums.keep({"b@1"})
    sums.tell("b@1", ModelStatistics(execution_count=2, generation=told(2)))  # started anew under the same id
    found = sums.total().generation
    assert found is not None
    assert (found.output_tokens, found.running, found.replicas, found.cache_usage) == (13, 2, 1, 0.25)
    assert found.finished == {"stop": 12}
    assert sum(found.first_token.counts) == 6
