"""LoRA adapters of a replica that runs: loaded beside the engine, many in one batch, gone when nobody runs with them."""

import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from inference.protocol.generation import language_signature
from inference.protocol.routes import ReplicaRoute, VariantRoute
from tests.support import language
from tests.support.gateway_house import House, until
from tests.support.openai_house import KEY
from tests.support.replica_process import Replica

PROMPT = "The canary sang in the window"
SETTINGS = {"generation": {"max_num_seqs": 8, "block_size": 8, "max_adapters": 2, "max_adapter_rank": 8}}
SEEDS = {"fr": 1, "de": 2, "it": 3}


class Stage:
    """One replica behind one gateway, the adapters' folders, and what transformers says with each merged."""

    def __init__(self, root):
        base = language.folder(root / "m")
        self.wanted = {"": language.greedy(base, PROMPT, 16)}
        for name, seed in SEEDS.items():
            language.adapter(root / name, seed=seed, lora_alpha=40)
            self.wanted[name] = language.greedy(language.merged(base, root / name), PROMPT, 16)
        language.adapter(root / "large", rank=16)
        (root / "r" / "work" / "adapters").mkdir(parents=True)
        self.replica = Replica(root / "r", root / "m", "hf_decoder", SETTINGS).ready()
        self.root, self.house = root, House()
        self.route("fr", "de", "it", "large")
        self.gateway = self.house.gateway().wait_live().wait_ready()
        self.specs = {name: self.replica.bring(name, root / name) for name in (*SEEDS, "large")}
        self.client = openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=KEY, max_retries=0)

    def route(self, *adapters):
        route = ReplicaRoute("r1", 1, f"unix:{self.replica.path}")
        signature = language_signature()
        variant = VariantRoute(1, "primary", 10_000, signature, [route], adapters=list(adapters))
        self.house.publish(self.house.table([variant]))

    def set(self, *names, **states):
        self.replica.set_adapters(*(self.specs[name] for name in names))
        return self.replica.wait_adapters(**(states or dict.fromkeys(names, "loaded")))

    def says(self, adapter="", count=16, **more):
        found = self.client.completions.create(
            model=f"mlp:{adapter}" if adapter else "mlp", prompt=PROMPT, temperature=0, max_tokens=count,
            extra_body={"ignore_eos": True, "return_token_ids": True}, **more,
        )  # fmt: skip
        return found.choices[0].token_ids

    def close(self):
        self.client.close()
        self.house.close()
        self.replica.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    found = Stage(tmp_path_factory.mktemp("adapters"))
    assert len({tuple(tokens) for tokens in found.wanted.values()}) == 4, "the adapters must make a difference"
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _empty(stage):
    yield
    stage.replica.set_adapters()
    stage.replica.wait_adapters()


def test_adapters_and_none_answer_at_once_each_like_its_merged_model(stage):
    pid = stage.replica.process.pid
    stage.set("fr", "de")
    asked = ["", "fr", "de"] * 4
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(stage.says, asked))
    assert found == [stage.wanted[name] for name in asked]
    assert stage.replica.process.poll() is None
    assert stage.replica.process.pid == pid


def test_a_slot_that_is_used_again_has_no_prefixes_of_its_last_adapter(stage):
    stage.set("fr")
    assert stage.says("fr") == stage.says("fr") == stage.wanted["fr"]
    for name in ("it", "de"):
        stage.set(name)
        assert stage.says(name) == stage.wanted[name]


def test_more_than_there_are_slots_wait_until_one_is_free(stage):
    told = stage.set("fr", "de", "it", fr="loaded", de="loaded", it="waiting")
    assert told["it"] == "all 2 slots are taken"
    stage.set("de", "it")
    assert stage.says("it") == stage.wanted["it"]
    with pytest.raises(openai.NotFoundError):
        stage.says("fr")


def test_an_adapter_that_does_not_fit_is_told_and_stops_nobody(stage):
    told = stage.set("large", "fr", large="failed", fr="loaded")
    assert "rank 16 is above generation.max_adapter_rank 8" in told["large"]
    assert stage.says("fr") == stage.wanted["fr"]


def test_what_began_with_an_adapter_ends_with_it(stage):
    stage.set("fr")
    begun, told = threading.Event(), []

    def read():
        asked = stage.client.completions.create(
            model="mlp:fr", prompt=PROMPT, temperature=0, max_tokens=400, stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
        for chunk in asked:
            told.extend(chunk.choices[0].token_ids or [])
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    stage.set(fr="leaving")
    with pytest.raises(openai.NotFoundError) as refused:
        stage.says("fr")
    assert refused.value.code == "model_not_found"
    reader.join(60)
    assert told[:16] == stage.wanted["fr"]
    assert len(told) == 400
    stage.replica.wait_adapters()


def test_the_gateway_names_and_takes_the_adapters_of_the_table(stage):
    stage.set("fr")
    stage.route("fr")
    until(lambda: [one.id for one in stage.client.models.list()] == ["mlp", "mlp:fr"])
    assert stage.client.models.retrieve("mlp:fr").parent == "mlp"
    with pytest.raises(openai.NotFoundError):
        stage.client.models.retrieve("mlp:de")
    stage.route("fr", "de", "it", "large")
    until(lambda: len(list(stage.client.models.list())) == 5)


def test_a_new_replica_has_its_adapters_before_it_is_ready(stage, tmp_path):
    """One whose files are missing is told, and keeps nobody back."""
    specs = [stage.specs["fr"], stage.specs["it"]]
    shutil.copytree(stage.root / "fr", tmp_path / "r" / "work" / "adapters" / specs[0].digest)
    second = Replica(tmp_path / "r", stage.root / "m", "hf_decoder", SETTINGS, specs).ready()
    second.close()
    assert {one.name: one.state for one in second.adapters} == {"fr": "loaded", "it": "failed"}


def test_whatever_comes_and_goes_an_answer_is_its_own_adapters_or_a_404(stage):
    """Slots change hands under load: nobody is answered by another's weights or from another's prefixes."""
    over, wrong, answered = threading.Event(), [], Counter()

    def ask(name):
        while not over.is_set():
            try:
                found = stage.says(name, 8)
            except openai.NotFoundError:
                continue
            answered[name] += 1
            if found != stage.wanted[name][:8]:
                wrong.append((name, found))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("", *SEEDS) for _ in range(2)]
    for thread in threads:
        thread.start()
    for names in (("fr", "de"), ("it", "fr"), ("de", "it"), ("fr",), ("de",), ("it",)) * 2:
        stage.set(*names)
        before = [answered[name] for name in names]
        until(lambda names=names, before=before: all(answered[n] > b for n, b in zip(names, before, strict=True)), 20)
    over.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert all(answered[name] >= 4 for name in SEEDS), answered
