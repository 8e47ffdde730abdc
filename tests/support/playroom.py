"""A console, a gateway process and fake language replicas that belong together, for the playground's tests.

Endpoints: "tiny" with versions 1 (90 %) and 2 (10 %), each with one replica of tests/support/fake_language.py, and
"asleep", whose only version has no replica, and "untaught", whose model has no chat template.
"""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from endpoints.models import Endpoint, Variant
from endpoints.publish import token_secret
from fleet.models import Deployment, Replica
from inference.protocol import generation
from inference.protocol.routes import EndpointRoute, RoutingTable, VariantRoute
from registry.models import Model, Version
from tests.support.cast import Cast
from tests.support.fake_language import CONTEXT, FakeLanguage
from tests.support.gateway_house import House, key
from tests.support.showroom import report, version

SEEN = {
    "architecture": "LlamaForCausalLM", "parameters": 134_515_008, "layers": 30, "context": CONTEXT, "vocabulary": 49_152,
    "stored": "Q4_1", "dtype": "fp32", "weight_bytes": 538_060_032, "cache_bytes_per_1000": 46_080_000,
    "has_chat_template": True, "path": "decoder", "quantization": "int8", "perplexity": 21.4031,
    "perplexity_plain": 21.25, "prompt_tokens_per_s": 812.4,
}  # fmt: skip
SIGNATURE = {
    "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
    "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1]}],
    "max_batch_size": 0,
    "platform": generation.PLATFORM,
}


def language_report(**seen: Any) -> dict[str, Any]:
    found = report()
    found["measurements"] |= {"latency_ms": {"1": 24.1, "4": 38.0, "16": 92.5}, "language": SEEN | seen}
    return found


def furnish_language(cast: Cast) -> None:
    """Models and endpoints as rows: who may see them is decided by these."""
    tiny = Model.objects.create(name="tiny", team=cast.red, task="text-generation", created_by=cast.owner)
    first, second = (_version(tiny, cast) for _ in range(2))
    _serve(cast, tiny, {first: 9000, second: 1000}, ready=True)
    asleep = Model.objects.create(name="asleep", team=cast.red, task="text-generation", created_by=cast.owner)
    _serve(cast, asleep, {_version(asleep, cast): 10_000}, ready=False)
    untaught = Model.objects.create(name="untaught", team=cast.red, task="text-generation", created_by=cast.owner)
    _serve(cast, untaught, {_version(untaught, cast, has_chat_template=False): 10_000}, ready=True)


def _version(model: Model, cast: Cast, **seen: Any) -> Version:
    files = [{"path": f"{model.name}.Q4_1.gguf", "size_bytes": 91_730_432, "sha256": "ab" * 32}]
    settings = {"generation": {"max_num_seqs": 16}}
    return version(model, cast, signature=SIGNATURE, format="gguf", tier="data", report=language_report(**seen),
                   manifest={"files": files}, size_bytes=91_730_432, settings=settings)  # fmt: skip


def _serve(cast: Cast, model: Model, shares: dict[Version, int], *, ready: bool) -> None:
    endpoint = Endpoint.objects.create(name=model.name, team=cast.red, model=model, salt="salt", created_by=cast.owner)
    for place, (held, share) in enumerate(shares.items()):
        Variant.objects.create(endpoint=endpoint, version=held, weight_bp=share, role="canary" if place else "primary")
        wish = Deployment.objects.create(version=held, replicas=1)
        if ready:
            Replica.objects.create(deployment=wish, phase="ready", ready_at=timezone.now(), memory_bytes=600 << 20)


def open_gateway(house: House) -> str:
    """Starts the replicas and a gateway; its address. The table needs `publish` once the database is there."""
    for name in ("tiny-1", "tiny-2"):
        replica = FakeLanguage(str(house.folder / f"{name}.sock"), name=name, version=int(name[-1]))
        house.replicas[name] = house.run(replica.start())
    return house.gateway().wait_live().url


def publish(house: House, adapters: tuple[str, ...] = ()) -> None:
    """The table of `furnish_language`, under the secret with which this console signs its tokens. adapters: of "tiny" v1."""
    language = generation.language_signature()
    variants = [
        VariantRoute(
            number,
            "canary" if number > 1 else "primary",
            share,
            language,
            [house.route(f"tiny-{number}")],
            adapters=list(adapters) if number == 1 else [],
        )
        for number, share in ((1, 9000), (2, 1000))
    ]
    asleep = [VariantRoute(1, "primary", 10_000, language, [])]
    untaught = [VariantRoute(1, "primary", 10_000, language, [house.route("tiny-1")])]
    house.generation += 1
    house.publish(
        RoutingTable(
            generation=house.generation,
            endpoints=[
                EndpointRoute("tiny", "tiny", "salt", False, 5000, 64, variants),
                EndpointRoute("untaught", "untaught", "salt", False, 5000, 64, untaught),
                EndpointRoute("asleep", "asleep", "salt", False, 300, 64, asleep),
            ],
            keys=[key("all", "s2", ["*"])],
            token_secret=token_secret(),
        )
    )
