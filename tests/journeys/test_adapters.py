"""LoRA adapters from upload to answer: attached to an endpoint that serves, named by the model, and taken away again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import language
from tests.support.house import House, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("house")]
PROMPT = "The canary sang in the window"
TOKENS = 16
ROOM = 'generation={"max_adapters": 2, "max_adapter_rank": 8, "block_size": 8, "max_num_seqs": 8}'
BASE = 'parameters={"base": "tiny-lm:1"}'


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """(folder, what transformers says greedily with each adapter merged into the weights, and with none)."""
    root = tmp_path_factory.mktemp("adapters")
    base = language.folder(root / "tiny-lm")
    found = {"": language.greedy(base, PROMPT, TOKENS)}
    for seed, name in enumerate(("fr", "de")):
        language.adapter(root / name, seed=seed, lora_alpha=40)
        found[name] = language.greedy(language.merged(base, root / name), PROMPT, TOKENS)
    language.adapter(root / "large", rank=16)
    return root, found


@pytest.fixture(scope="module")
def served(house: House, wanted: tuple[Path, dict[str, list[int]]]) -> Iterator[Path]:
    root, _ = wanted
    house.cli("upload", "tiny-lm", str(root / "tiny-lm"), "--set", ROOM)
    house.cli("deploy", "tiny-lm:1")
    for name in ("fr", "de", "large"):
        house.cli("upload", name, str(root / name), "--set", BASE)
    yield root
    house.scale("tiny-lm", 1, 0)


@pytest.fixture(autouse=True)
def _none_left(house: House) -> Iterator[None]:
    yield
    for row in json.loads(house.cli("adapter", "list", "tiny-lm", "--json").stdout):
        house.cli("adapter", "remove", "tiny-lm", row["name"])


def complete(house: House, model: str) -> httpx.Response:
    body = {
        "model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {house.key}"}
    return httpx.post(f"{house.gateway_url}/v1/completions", json=body, headers=headers, timeout=60)


def says(house: House, model: str) -> list[int]:
    answer = complete(house, model)
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found


def models(house: House) -> list[str]:
    headers = {"Authorization": f"Bearer {house.key}"}
    listed = httpx.get(f"{house.gateway_url}/v1/models", headers=headers, timeout=10).json()["data"]
    return [one["id"] for one in listed if one["id"].startswith("tiny-lm")]


def replica(house: House) -> tuple[Any, ...]:
    (row,) = house.ready_replicas("tiny-lm")
    return row["id"], row["generation"], row["pid"]


def test_adapters_are_attached_while_the_base_serves_and_taken_away(
    house: House, served: Path, wanted: tuple[Path, dict[str, list[int]]]
) -> None:
    tokens = wanted[1]
    assert len({tuple(one) for one in tokens.values()}) == 3, "the adapters must make a difference"
    until("the base answers", lambda: complete(house, "tiny-lm").status_code == 200)
    before = replica(house)
    for name in ("fr", "de"):
        told = house.cli("adapter", "add", "tiny-lm", name, "--json")
        assert [one["state"] for one in json.loads(told.stdout)["adapters"]][-1] == "loaded"
    until("both are named", lambda: models(house) == ["tiny-lm", "tiny-lm:de", "tiny-lm:fr"])
    asked = ["tiny-lm", "tiny-lm:fr", "tiny-lm:de"] * 3
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda model: says(house, model), asked))
    assert found == [tokens[model.removeprefix("tiny-lm").removeprefix(":")] for model in asked]

    refused = house.cli("adapter", "add", "tiny-lm", "large", check=False)
    assert refused.returncode
    assert "2 adapters at most" in refused.stderr
    house.cli("adapter", "remove", "tiny-lm", "fr")
    until("it is gone", lambda: complete(house, "tiny-lm:fr").status_code == 404)
    assert complete(house, "tiny-lm:fr").json()["error"]["code"] == "model_not_found"
    assert models(house) == ["tiny-lm", "tiny-lm:de"]
    assert says(house, "tiny-lm:de") == tokens["de"]
    assert says(house, "tiny-lm") == tokens[""]

    failed = house.cli("adapter", "add", "tiny-lm", "large", "--as", "big", check=False)
    assert failed.returncode
    assert "rank 16 is above" in failed.stderr
    listed = json.loads(house.cli("adapter", "list", "tiny-lm", "--json").stdout)
    assert {one["name"]: one["state"] for one in listed} == {"big": "failed", "de": "loaded"}
    assert complete(house, "tiny-lm:big").status_code == 404
    house.cli("adapter", "remove", "tiny-lm", "big")
    assert replica(house) == before, "adapters never restart a replica"


def test_a_new_replica_has_the_adapters_from_its_first_request(
    house: House, served: Path, wanted: tuple[Path, dict[str, list[int]]]
) -> None:
    before = replica(house)
    house.cli("adapter", "add", "tiny-lm", "de")
    until("it is named", lambda: "tiny-lm:de" in models(house))
    house.ok("POST", f"/api/replicas/{before[0]}/restart/", {})
    until("another process", lambda: (rows := house.ready_replicas("tiny-lm")) and rows[0]["pid"] != before[2], 60)
    assert says(house, "tiny-lm:de") == wanted[1]["de"]


def test_an_adapter_is_not_deployed_by_itself(house: House, served: Path) -> None:
    refused = house.cli("deploy", "fr:1", check=False)
    assert refused.returncode
    assert "serinus adapter add" in refused.stderr
