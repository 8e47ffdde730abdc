"""Where the boxes and arrows of a graph stand: pure, from names to coordinates.

Layers by depth from top to bottom (after Sugiyama, Tagawa and Toda 1981): a box stands below everything that it waits
for, arrows that skip a layer get a place of their own in it, and a few sweeps by barycentre order each layer so that
few arrows cross. Two boxes fit beside each other on a narrow phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 140, 60
GAP, RISE = 14, 54
LANE = 10
EDGE = 2
SWEEPS = 6
TITLE_CHARS, LINE_CHARS, LABEL_CHARS = 17, 21, 20


@dataclass(frozen=True, slots=True)
class Box:
    """What is to be drawn as one box. kind: "input", "step" or "output"; tone colours its last line."""

    key: str
    kind: str
    title: str
    lines: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Wire:
    """An arrow from box to box, with the names of the tensors that it carries."""

    source: str
    target: str
    label: str


@dataclass(frozen=True, slots=True)
class PlacedBox:
    """A box with its place; texts are cut to fit."""

    box: Box
    x: float
    y: float
    title: str
    lines: list[tuple[str, float]]

    @property
    def middle(self) -> float:
        return self.x + WIDTH / 2


@dataclass(frozen=True, slots=True)
class PlacedWire:
    """An arrow as an SVG path, its head, and where its label stands."""

    path: str
    head: str
    label: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Picture:
    width: float
    height: float
    boxes: list[PlacedBox] = field(default_factory=list)
    wires: list[PlacedWire] = field(default_factory=list)


@dataclass(slots=True)
class _Spot:
    """A place in a layer: a box, or a lane that an arrow takes through it (box is None)."""

    layer: int
    box: Box | None = None
    x: float = 0.0
    ups: list[_Spot] = field(default_factory=list)
    downs: list[_Spot] = field(default_factory=list)

    @property
    def width(self) -> int:
        return WIDTH if self.box is not None else LANE


def layout(boxes: Sequence[Box], wires: Sequence[Wire]) -> Picture:
    """Places a graph without cycles; wires between unknown boxes are left out. Wires of one pair become one."""
    joined = _joined(boxes, wires)
    depth = _depths(boxes, joined)
    layers: list[list[_Spot]] = [[] for _ in range(1 + max(depth.values(), default=0))]
    spots = {box.key: _Spot(depth[box.key], box) for box in boxes}
    for spot in spots.values():
        layers[spot.layer].append(spot)
    routes = [(label, _route(spots[source], spots[target], layers)) for (source, target), label in joined.items()]
    for sweep in range(SWEEPS):
        _order(layers, down=sweep % 2 == 0)
    width = _place(layers)
    return Picture(
        width + 2 * EDGE,
        len(layers) * (HEIGHT + RISE) - RISE + 2 * EDGE,
        [_placed(spot) for layer in layers for spot in layer if spot.box is not None],
        [_drawn(route, label) for label, route in routes],
    )


def _joined(boxes: Sequence[Box], wires: Sequence[Wire]) -> dict[tuple[str, str], str]:
    known = {box.key for box in boxes}
    found: dict[tuple[str, str], list[str]] = {}
    for wire in wires:
        if wire.source in known and wire.target in known:
            labels = found.setdefault((wire.source, wire.target), [])
            if wire.label not in labels:
                labels.append(wire.label)
    return {pair: ", ".join(labels) for pair, labels in found.items()}


def _depths(boxes: Sequence[Box], joined: dict[tuple[str, str], str]) -> dict[str, int]:
    """The longest way to each box; outputs stand together at the bottom."""
    depth = {box.key: 0 for box in boxes}
    for _ in boxes:
        moved = False
        for source, target in joined:
            if depth[target] <= depth[source]:
                depth[target], moved = depth[source] + 1, True
        if not moved:
            break
    last = max(depth.values(), default=0)
    return {box.key: last if box.kind == "output" else depth[box.key] for box in boxes}


def _route(source: _Spot, target: _Spot, layers: list[list[_Spot]]) -> list[_Spot]:
    route = [source]
    for layer in range(source.layer + 1, target.layer):
        lane = _Spot(layer)
        layers[layer].append(lane)
        route.append(lane)
    route.append(target)
    for upper, lower in pairwise(route):
        upper.downs.append(lower)
        lower.ups.append(upper)
    return route


def _order(layers: list[list[_Spot]], *, down: bool) -> None:
    for layer in layers if down else reversed(layers):
        place = {id(spot): at for other in layers for at, spot in enumerate(other)}

        def centre(spot: _Spot, place: dict[int, int] = place) -> float:
            near = spot.ups if down else spot.downs
            return sum(place[id(one)] for one in near) / len(near) if near else place[id(spot)]

        layer.sort(key=centre)


def _place(layers: list[list[_Spot]]) -> float:
    widths = [sum(spot.width for spot in layer) + GAP * (len(layer) - 1) for layer in layers]
    widest = max(widths, default=0)
    for layer, width in zip(layers, widths, strict=True):
        x = EDGE + (widest - width) / 2
        for spot in layer:
            spot.x = x + spot.width / 2
            x += spot.width + GAP
    return widest


def _placed(spot: _Spot) -> PlacedBox:
    box, top = spot.box, _top(spot)
    assert box is not None
    lines = [(cut(line, LINE_CHARS), top + 35 + 16 * at) for at, line in enumerate(box.lines)]
    return PlacedBox(box, round(spot.x - WIDTH / 2, 1), top, cut(box.title, TITLE_CHARS), lines)


def _drawn(route: list[_Spot], label: str) -> PlacedWire:
    x, y = route[0].x, _top(route[0]) + HEIGHT
    path = f"M{x:.1f} {y:.1f}"
    for spot in route[1:]:
        below = _top(spot)
        middle = (y + below) / 2
        path += f"C{x:.1f} {middle:.1f} {spot.x:.1f} {middle:.1f} {spot.x:.1f} {below:.1f}"
        x, y = spot.x, below
        if spot.box is None:
            y += HEIGHT
            path += f"V{y:.1f}"
    head = f"M{x - 4:.1f} {y - 7:.1f}L{x + 4:.1f} {y - 7:.1f}L{x:.1f} {y:.1f}Z"
    return PlacedWire(path, head, cut(label, LABEL_CHARS), *_label_at(route[0], route[1]))


def _label_at(upper: _Spot, lower: _Spot) -> tuple[float, float]:
    """On an arrow's first piece, nearer to the end that it shares with fewer others, so that labels keep apart."""
    near_x, near_y = (0.718, 0.616) if len(upper.downs) >= len(lower.ups) else (0.282, 0.384)
    if len(upper.downs) == len(lower.ups):
        near_x, near_y = 0.5, 0.5
    x = upper.x + (lower.x - upper.x) * near_x
    return round(x, 1), round(_top(upper) + HEIGHT + RISE * near_y + 4, 1)


def _top(spot: _Spot) -> float:
    return EDGE + spot.layer * (HEIGHT + RISE)


def cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
