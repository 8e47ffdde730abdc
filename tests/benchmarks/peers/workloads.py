"""The payloads: W1, rows of 16 numbers; W2, 512 sentences of 5 to 120 words. Fixed, so that figures compare over years."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

WORDS = (  # noqa: SIM905 (a list of 200 strings reads worse)
    "the of and to in is you that it he was for on are as with his they I at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part over new sound "
    "take only little work know place year live me back give most very after thing our just name good sentence man "
    "think say great where help through much before line right too mean old any same tell boy follow came want show "
    "also around form three small set put end does another well large must big even such because turn here why ask "
    "went men read need land different home us move try kind hand picture again change off play spell air away animal "
    "house point page letter mother answer found study still learn should world server latency model batching request "
    "tensor gradient inference throughput scheduler canary rollout version registry accelerator quantisation tokenizer "
    "embedding attention pipeline monitoring availability percentile"
).split()
Body = Callable[[Any], dict[str, Any]]


def values(workload: str) -> list[Any]:
    """What one request asks about, for each of them."""
    if workload == "w1":
        rng = random.Random(7)
        return [[round(rng.uniform(-1, 1), 4) for _ in range(16)] for _ in range(256)]
    rng = random.Random(2024)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 120))) for _ in range(512)]


def key_of(value: Any) -> str:
    return "text" if isinstance(value, str) else "x"


def bare(value: Any) -> dict[str, Any]:
    return {key_of(value): value}


def listed(value: Any) -> dict[str, Any]:
    return {key_of(value): [value]}


def v2(name: str = "", *, flat: bool = False) -> Body:
    """Open Inference Protocol. name: of the input, where it is not the payload's own; flat: a text has no row of one."""

    def body(value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            given = {"shape": [1] if flat else [1, 1], "datatype": "BYTES", "data": [value]}
        else:
            given = {"shape": [1, 16], "datatype": "FP32", "data": value}
        return {"inputs": [{"name": name or key_of(value), **given}]}

    return body


def numbers_in(answer: Any) -> list[float]:
    """The model's numbers, in whatever shape a server wraps them: the longest flat list of numbers."""
    if isinstance(answer, list):
        if answer and all(isinstance(one, int | float) for one in answer):
            return [float(one) for one in answer]
        return max((numbers_in(one) for one in answer), key=len, default=[])
    if isinstance(answer, dict):
        return max((numbers_in(one) for name, one in answer.items() if name != "shape"), key=len, default=[])
    return []


def encoded(body: Body, workload: str) -> list[bytes]:
    return [json.dumps(body(value)).encode() for value in values(workload)]
