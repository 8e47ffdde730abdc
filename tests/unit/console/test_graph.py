"""Pictures of graphs: everything is on them, nothing stands on anything else, arrows lead downwards."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from console.graph import GAP, HEIGHT, WIDTH, Box, Wire, cut, layout
from console.pipelines import StepShown, draw
from tests.support.pipelines import chain, random_graph


def picture_of(pipeline, **options):
    steps = [StepShown(one.name, one.model, 1, one.input_map, one.output_map) for one in pipeline.steps]
    inputs, outputs = (
        [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in side]
        for side in (pipeline.inputs, pipeline.outputs)
    )
    return draw(inputs, outputs, steps, **({"deployed": False} | options))


def ends(wire):
    """(x, y) where an arrow begins and ends."""
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d", wire.path)]
    head = [float(number) for number in re.findall(r"-?\d+\.\d", wire.head)]
    return numbers[:2], head[-2:]


@given(st.integers(0, 10**9), st.integers(1, 14))
def test_nothing_overlaps_and_everything_is_inside(seed, steps):
    pipeline = random_graph(seed, steps)
    picture = picture_of(pipeline)
    assert len(picture.boxes) == len(pipeline.inputs) + len(pipeline.steps) + len(pipeline.outputs)
    rows: dict[float, list[float]] = {}
    for placed in picture.boxes:
        assert 0 <= placed.x <= picture.width - WIDTH
        assert 0 <= placed.y <= picture.height - HEIGHT
        rows.setdefault(placed.y, []).append(placed.x)
    for row in rows.values():
        row.sort()
        assert all(right - left >= WIDTH + GAP - 1 for left, right in pairwise(row))


@given(st.integers(0, 10**9), st.integers(1, 14))
def test_every_arrow_leads_down_from_its_maker_to_its_reader(seed, steps):
    pipeline = random_graph(seed, steps)
    picture = picture_of(pipeline)
    places = {placed.box.key: placed for placed in picture.boxes}
    makers = {spec.name: f"in:{spec.name}" for spec in pipeline.inputs}
    makers |= {name: f"step:{one.name}" for one in pipeline.steps for name in one.output_map.values()}
    wanted = {(makers[name], f"step:{one.name}") for one in pipeline.steps for name in one.input_map.values()}
    wanted |= {(makers[spec.name], f"out:{spec.name}") for spec in pipeline.outputs}
    assert len(picture.wires) == len(wanted)
    found = {(tuple(start), tuple(end)) for start, end in map(ends, picture.wires)}
    for source, target in wanted:
        start, end = places[source], places[target]
        assert start.y < end.y
        assert ((start.middle, start.y + HEIGHT), (end.middle, end.y)) in found


def test_a_chain_is_one_straight_column_that_fits_a_phone():
    picture = picture_of(chain("normalise", "embed", "classify"))
    assert len({placed.x for placed in picture.boxes}) == 1
    assert [placed.box.title for placed in picture.boxes] == ["raw", "normalise", "embed", "classify", "out"]
    assert picture.width < 296
    assert [wire.label for wire in picture.wires] == ["raw", "t1", "t2", "out"]


def test_two_branches_fit_a_phone():
    boxes = [Box(key, "step", key) for key in ("a", "b", "c", "d")]
    picture = layout(boxes, [Wire("a", "b", "t"), Wire("a", "c", "t"), Wire("b", "d", "u"), Wire("c", "d", "v")])
    assert picture.width <= 298


def test_tensors_of_one_pair_share_an_arrow():
    picture = layout([Box("a", "step", "a"), Box("b", "step", "b")], [Wire("a", "b", "t"), Wire("a", "b", "u")])
    assert [wire.label for wire in picture.wires] == ["t, u"]


def test_an_arrow_over_a_layer_takes_a_lane_beside_the_boxes():
    boxes = [Box(key, "step", key) for key in ("a", "b", "c")]
    picture = layout(boxes, [Wire("a", "b", "t"), Wire("b", "c", "u"), Wire("a", "c", "v")])
    long = next(wire for wire in picture.wires if wire.label == "v")
    (b,) = [placed for placed in picture.boxes if placed.box.key == "b"]
    lane = float(re.findall(r" (-?\d+\.\d) -?\d+\.\dV", long.path)[0])
    assert not b.x <= lane <= b.x + WIDTH


def test_the_last_line_says_how_a_deployed_step_stands():
    picture = picture_of(chain("a"), deployed=True)
    (step,) = [placed for placed in picture.boxes if placed.box.kind == "step"]
    assert [line for line, _ in step.lines] == ["a:1", "none ready"]
    assert step.box.tone == "bad"


def test_an_empty_graph_is_an_empty_picture():
    assert layout([], []).boxes == []


def test_long_names_are_cut():
    assert cut("classify-sentiment", 17) == "classify-sentime…"
    assert cut("short", 17) == "short"
