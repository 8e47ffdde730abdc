"""What a gateway counts of its requests, and how it comes out at /metrics and in samples."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from inference import metrics
from inference.errors import BY_CODE, InvalidOutput, Overloaded, PoisonInput, Unauthenticated
from inference.gateway import exposition
from inference.gateway.exposition_versions import families
from inference.gateway.telemetry import REFUSALS, Telemetry
from inference.protocol.messages import Answer
from inference.protocol.samples import BATCH_EDGES, LATENCY_EDGES_MS, STAGE_EDGES_NS, Sample, bucket_of
from inference.protocol.statistics import BatchStatistics, Duration, ModelStatistics

KEY = ("mlp", 1, "primary")
times = st.integers(0, 30_000_000_000)


def answer(queue: int, entered: int, compute: int, output: int, size: int) -> Answer:
    return Answer(1, [], size, queue, compute, input_ns=entered, output_ns=output)


answers = st.lists(
    st.builds(answer, times, times, times, times, st.integers(0, 3000)),
    max_size=30,
    unique_by=lambda one: one.compute_ns,
)


def bucket(edges: tuple[int, ...], value: int) -> int:
    return next((index for index, edge in enumerate(edges) if value <= edge), len(edges))


@given(answers, st.lists(st.integers(1, 5), max_size=30), st.lists(st.booleans(), max_size=60))
def test_counting_by_batches_is_counting_by_requests(passes, sizes, ends):
    """Whatever the order of answers and whenever a second ends, nothing is lost and nothing counted twice."""
    telemetry = Telemetry("t")
    told = [one for one, times in zip(passes, [*sizes, *[1] * len(passes)], strict=False) for _ in range(times)]
    for index, one in enumerate(told):
        telemetry.answered(KEY, 1.0, one, 0)
        if index < len(ends) and ends[index]:
            telemetry.close_bin(index)
    found = dict(telemetry.totals()).get(KEY)
    again = dict(telemetry.totals()).get(KEY)
    if not told:
        assert found is None
        return
    for name, take in (
        ("queue", lambda one: one.queue_ns),
        ("input", lambda one: one.input_ns),
        ("compute", lambda one: one.compute_ns),
        ("output", lambda one: one.output_ns),
        ("batches", lambda one: one.batch_size),
    ):
        edges = BATCH_EDGES if name == "batches" else STAGE_EDGES_NS
        wanted = [0] * (len(edges) + 1)
        for one in told:
            wanted[bucket(edges, take(one))] += 1
        assert getattr(found, name).counts == getattr(again, name).counts == wanted
        assert getattr(found, name).total == sum(take(one) for one in told)


def test_a_sample_bears_stages_and_batch_sizes():
    telemetry = Telemetry("t")
    for queue in (1_000_000, 3_000_000):
        telemetry.answered(KEY, 5.0, answer(queue, 200_000, 2_000_000, 100_000, 2), 0)
    telemetry.answered(KEY, 5.0, answer(0, 300_000, 2_500_000, 0, 40), 0)
    telemetry.close_bin(7)
    sample = msgspec.msgpack.decode(telemetry.waiting[0], type=Sample)
    assert (sample.queue_sum_ms, sample.input_sum_ms, sample.compute_sum_ms) == (4.0, 0.7, 6.5)
    assert (sample.output_sum_ms, sample.batch_sum) == (0.2, 44)
    assert {BATCH_EDGES[index]: count for index, count in sample.batch_counts.items()} == {2: 2, 48: 1}


@given(st.lists(times, max_size=40), st.lists(st.booleans(), max_size=40))
def test_the_queues_wait_is_one_count_in_two_histograms(waits, ends):
    telemetry = Telemetry("t")
    for index, wait in enumerate(waits):
        telemetry.answered(KEY, 1.0, answer(wait, 0, index, 0, 1), 0)
        if index < len(ends) and ends[index]:
            telemetry.close_bin(index)
    telemetry.close_bin(99)
    found: dict[int, int] = {}
    for data in telemetry.waiting:
        for index, count in msgspec.msgpack.decode(data, type=Sample).queue_counts.items():
            found[index] = found.get(index, 0) + count
    wanted: dict[int, int] = {}
    for wait in waits:
        # to the nanosecond of the edge: samples' own edges are in ms
        index = bucket(tuple(round(edge * 1e6) for edge in LATENCY_EDGES_MS), wait)
        wanted[index] = wanted.get(index, 0) + 1
    assert found == wanted


def test_what_a_judge_reads_comes_out_in_samples_and_at_metrics():
    telemetry = Telemetry("t")
    telemetry.answered(KEY, 5.0, msgspec.structs.replace(answer(0, 0, 1, 0, 1), is_invalid=True), 0)
    telemetry.failed(KEY, 5.0, InvalidOutput(), 0)
    telemetry.failed(KEY, 5.0, PoisonInput(), 0)
    telemetry.close_bin(1)
    telemetry.failed(KEY, 5.0, PoisonInput(), 0, is_fault=True)
    telemetry.rescued(KEY)
    for score in (0.5, 1.0):
        telemetry.scored(KEY, score)
    telemetry.part(KEY, 40.0, is_first=True)
    telemetry.part(KEY, 4.0, is_first=False)
    telemetry.part(KEY, 5.0, is_first=False)
    telemetry.close_bin(2)
    first, second = (msgspec.msgpack.decode(data, type=Sample) for data in telemetry.waiting)
    assert (first.requests, first.errors, first.invalid, first.rescued) == (3, 1, 2, 0)
    assert (second.requests, second.errors, second.rescued) == (1, 1, 1)
    assert (second.scores, second.score_sum, second.score_sq) == (2, 1.5, 1.25)
    assert second.first_counts == {bucket_of(40.0): 1}
    assert second.next_counts == {bucket_of(4.0): 1, bucket_of(5.0): 1}
    found = scraped(exposition._judged(telemetry))
    labels = "primary,mlp,1"
    assert (found["serinus_requests_rescued_total", labels], found["serinus_invalid_outputs_total", labels]) == (1, 2)
    assert (found["serinus_score_count", labels], found["serinus_score_sum", labels]) == (2, 1.5)
    assert (found["serinus_first_part_seconds_count", labels], found["serinus_first_part_seconds_sum", labels]) == (
        1,
        0.04,
    )
    assert (
        found["serinus_between_parts_seconds_count", labels],
        found["serinus_between_parts_seconds_sum", labels],
    ) == (2, 0.009)


def test_versions_that_have_been_gone_for_a_while_are_forgotten():
    telemetry = Telemetry("t")
    for number in (1, 2):
        telemetry.answered(("mlp", number, "primary"), 1.0, answer(0, 0, number, 0, 1), 0)
    telemetry.failed(("mlp", 0, ""), 1.0, Overloaded(), 0)
    telemetry.failed(("old", 0, ""), 1.0, Overloaded(), 0)
    for name in ("mlp", "old", ""):
        telemetry.refused(name, Unauthenticated())
    telemetry.close_bin(1)
    for now in (0.0, 599.0, 601.0):
        assert len(dict(telemetry.totals())) == 4
        telemetry.keep({("mlp", 1)}, now)
    assert set(dict(telemetry.totals())) == {("mlp", 1, "primary"), ("mlp", 0, "")}
    assert {name for name, _ in telemetry.refusals} == {"mlp", ""}


def test_every_code_is_a_refusal_or_a_fault():
    faults = {
        "internal", "invalid_output", "model_failed", "out_of_memory", "replica_lost", "sequence_lost", "storage_full",
    }  # fmt: skip
    assert set(BY_CODE) == REFUSALS | faults


def test_a_reader_of_before_and_a_sender_of_before_are_understood():
    old = {"source": "g", "sequence": 1, "at_unix_s": 1, "endpoint": "e", "version": 1, "arm": "primary"}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Sample).batch_counts == {}

    class Before(msgspec.Struct):
        source: str
        requests: int

    sent = msgspec.msgpack.encode(Sample("g", 1, 1, "e", 1, "primary", 3, batch_counts={1: 2}))
    assert msgspec.msgpack.decode(sent, type=Before).requests == 3


def scraped(found) -> dict[tuple[str, str], float]:
    text = metrics.render(found)[1].decode()
    return {
        (one.name, ",".join(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_stages_and_rejections_come_out_at_metrics():
    telemetry = Telemetry("t")
    telemetry.answered(KEY, 5.0, answer(15_000, 1, 90_000, 30_000_000_000, 2), 0)
    telemetry.failed(KEY, 1.0, Overloaded(), 0)
    telemetry.refused("mlp", Unauthenticated())
    found = scraped([exposition._stages(telemetry), exposition._rejections(telemetry)])
    stage = "serinus_stage_seconds"
    assert found[f"{stage}_bucket", "primary,mlp,1e-05,queue,1"] == 0
    assert found[f"{stage}_bucket", "primary,mlp,2e-05,queue,1"] == 1
    assert found[f"{stage}_sum", "primary,mlp,compute,1"] == 9e-05
    assert found[f"{stage}_bucket", "primary,mlp,10.4858,output,1"] == 0
    assert found[f"{stage}_bucket", "primary,mlp,+Inf,output,1"] == 1
    assert found["serinus_rejections_total", "primary,mlp,overloaded,1"] == 1
    assert found["serinus_rejections_total", ",mlp,unauthenticated,"] == 1


def test_padding_and_batch_sizes_of_a_version_come_out_at_metrics():
    told = ModelStatistics(padded_rows=3, elements=100, padding_elements=25, cancelled=2, queue_depth=4)
    told.batches = {size: BatchStatistics(compute_infer=Duration(count, 1)) for size, count in ((1, 5), (7, 2))}
    found = scraped(families({("mlp", "1"): told}))
    assert found["serinus_batch_size_count", "mlp,1"] == 7
    assert found["serinus_batch_size_sum", "mlp,1"] == 19
    assert found["serinus_batch_size_bucket", "mlp,6,1"] == 5
    assert found["serinus_batch_size_bucket", "mlp,8,1"] == 7
    assert found["serinus_padding_elements_total", "mlp,1"] == 25
    assert (found["serinus_elements_total", "mlp,1"], found["serinus_padded_rows_total", "mlp,1"]) == (100, 3)
    assert (found["serinus_requests_dropped_total", "mlp,1"], found["serinus_queue_depth", "mlp,1"]) == (2, 4)
