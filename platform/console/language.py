"""Language models in the console: which versions are one, what validation learnt of them, what one can chat with."""

from __future__ import annotations

from typing import Any

from django.db.models import Prefetch

from accounts.permissions import Actor, visible
from console.reading import MAX_SHOWN
from endpoints.models import Endpoint, Variant
from fleet.standing import ready_counts
from inference.protocol.generation import PLATFORM
from registry.adapters import ADAPTER
from registry.models import Version, VersionStatus

Facts = dict[str, Any]


def is_language(version: Version) -> bool:
    return (version.signature or {}).get("platform") == PLATFORM


def facts_of(version: Version) -> Facts:
    """What LanguageSeen tells of a validated version, with its perplexity's change by quantisation; {} without."""
    seen: Facts = ((version.report or {}).get("measurements") or {}).get("language") or {}
    if not seen:
        return {}
    plain, now = seen.get("perplexity_plain") or 0.0, seen.get("perplexity") or 0.0
    return {**seen, "perplexity_change": now / plain - 1 if plain else None}


def language_of(versions: list[Version]) -> Facts:
    """Of an endpoint with language models: what is true of all of them; {} for any other endpoint."""
    held = [facts_of(version) for version in versions if is_language(version)]
    if not held:
        return {}
    contexts = [facts["context"] for facts in held if facts.get("context")]
    return {
        "has_chat_template": all(facts.get("has_chat_template", True) for facts in held),
        "context": min(contexts, default=0),
    }


def steps_of(measured: Facts) -> list[Facts]:
    """Rows of sequences at once, median of one step in ms, tokens per second of each and of all; ascending."""
    pairs = sorted(
        (int(many), float(ms)) for many, ms in (measured.get("latency_ms") or {}).items() if str(many).isdigit()
    )
    top = max((ms for _, ms in pairs), default=0.0)
    return [
        {"many": many, "ms": ms, "top": top, "each_per_s": 1000 / ms, "all_per_s": many * 1000 / ms}
        for many, ms in pairs
        if many and ms
    ]


def chat_targets(actor: Actor) -> list[Facts]:
    """The endpoints of language models that the actor may see: [{name, ready, versions: [{number, share_bp, ready,
    context, template, adapters: their names}]}], the version with the most traffic first.
    """
    shown = Variant.objects.select_related("version").prefetch_related("adapters")
    variants = Prefetch("variants", shown.order_by("-weight_bp", "version__number"))
    rows = visible(actor, Endpoint.objects.filter(variants__version__signature__platform=PLATFORM))
    held = list(rows.distinct().prefetch_related(variants).order_by("name")[:MAX_SHOWN])
    ready = ready_counts({variant.version_id for endpoint in held for variant in endpoint.variants.all()})
    return [_target(endpoint, ready) for endpoint in held]


def first_chatting(actor: Actor) -> str:
    """The name of an endpoint of a language model that the actor may see, for examples; "" without one."""
    rows = visible(actor, Endpoint.objects.filter(variants__version__signature__platform=PLATFORM))
    return rows.order_by("name").values_list("name", flat=True).first() or ""


def _target(endpoint: Endpoint, ready: dict[int, int]) -> Facts:
    versions = [_version(variant, ready) for variant in endpoint.variants.all() if is_language(variant.version)]
    return {"name": endpoint.name, "ready": sum(one["ready"] for one in versions), "versions": versions}


def _version(variant: Variant, ready: dict[int, int]) -> Facts:
    facts = facts_of(variant.version)
    return {
        "number": variant.version.number,
        "share_bp": variant.weight_bp,
        "ready": ready.get(variant.version_id, 0),
        "context": facts.get("context", 0),
        "template": bool(facts.get("has_chat_template", True)),
        "adapters": [adapter.name for adapter in variant.adapters.all()],
    }


def undeployed(actor: Actor) -> list[Version]:
    """Ready language models that serve nowhere, the newest first. An adapter serves with its base."""
    rows = Version.objects.filter(status=VersionStatus.READY, signature__platform=PLATFORM, variants=None)
    rows = rows.exclude(format=ADAPTER)
    return list(visible(actor, rows.select_related("model"), "model__team").order_by("-pk")[:5])
