"""The routing table: built from rows, counted in PostgreSQL, written to Valkey, never going back a generation.

Which replicas a version's route names (robustness: faults 2, 3, 5, 6 and 10):
1. Those that are ready, those whose host merely lapsed, and those that move but whose newer generation is not ready
   yet: they may all be serving, so they stay.
2. Only when there is none of these: replicas that crashed and restart. Their supervisor keeps the listener open, so
   requests wait in it and are answered when the process is back, within their deadline.
3. Never those that are to stop, or that were given up as failed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from typing import cast

import msgspec
import redis
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from redis.exceptions import RedisError, WatchError

from accounts.models import ApiKey
from endpoints.adapters import standing
from endpoints.models import Adapter, Endpoint, PublishedTable, Variant
from fleet.models import Replica
from inference.protocol.oip import Signature
from inference.protocol.routes import (
    TABLE_CHANNEL,
    TABLE_KEY,
    EndpointRoute,
    KeyRoute,
    PipelineRoute,
    Recording,
    ReplicaRoute,
    RoutingTable,
    Steering,
    StepRoute,
    VariantRoute,
    encode,
)
from inference.protocol.settings import RuntimeSettings
from registry.models import PipelineStep, Version

GENERATION = re.compile(rb'^\{"generation":(\d+)')
HEAD_BYTES = 40
TRIES = 5
log = logging.getLogger(__name__)


def publish(*, force: bool = False) -> int:
    """Brings the table in Valkey up to date and answers its generation.

    1. Under the row's lock: build, and count the generation on if the content changed. 2. Write it to Valkey if the
    one there is missing or older (or `force`), and announce it. Valkey being away is no error: the next call, a
    second later, writes it.
    """
    row = _counted()
    try:
        with _valkey() as valkey:
            there = _write(valkey, row, force=force)
        if there > row.generation:
            _overtake(there)
            return publish(force=True)
    except RedisError as error:
        log.warning("the routing table stays in PostgreSQL for now: %s", error)
    return row.generation


def token_secret() -> str:
    """The secret that signs the playground's tokens; gateways know it from the table."""
    found = PublishedTable.objects.filter(id=1).values_list("token_secret", flat=True).first()
    return found or _counted().token_secret


def build_table(*, secret: str = "") -> RoutingTable:
    """The table as the rows have it now, in one fixed order, so that equal rows give equal bytes. Generation 0."""
    endpoints = list(Endpoint.objects.select_related("model", "team").order_by("name"))
    variants: dict[int, list[Variant]] = {}
    rows = Variant.objects.select_related("version").order_by("endpoint_id", "version__number")
    for variant in rows:
        variants.setdefault(variant.endpoint_id, []).append(variant)
    replicas, steps, adapters = _replicas(), _steps(), _adapters()
    return RoutingTable(
        generation=0,
        endpoints=[
            _endpoint(endpoint, variants.get(endpoint.pk, []), replicas, steps, adapters) for endpoint in endpoints
        ],
        keys=_keys(endpoints),
        token_secret=secret,
    )


def _counted() -> PublishedTable:
    with transaction.atomic():
        PublishedTable.objects.get_or_create(id=1, defaults={"token_secret": secrets.token_hex(32)})
        row = PublishedTable.objects.select_for_update().get(id=1)
        row.token_secret = row.token_secret or secrets.token_hex(32)
        table = build_table(secret=row.token_secret)
        digest = hashlib.sha256(encode(table)).hexdigest()
        if digest != row.digest:
            row.generation += 1
            row.digest = digest
            row.table = encode(msgspec.structs.replace(table, generation=row.generation))
            row.save()
    return row


def _overtake(there: int) -> None:
    """The database is older than Valkey (restored from a backup): go past what gateways have already seen."""
    log.warning("Valkey holds routing table %s, newer than ours: going past it", there)
    PublishedTable.objects.filter(id=1, generation__lt=there).update(generation=there, digest="")


def _valkey() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=5)


def _write(valkey: redis.Redis, row: PublishedTable, *, force: bool) -> int:
    """Writes the table unless the one there is as new; answers the generation that was there (-1: none).

    Watched, so that of two publishers the older one never overwrites the newer.
    """
    for _ in range(TRIES):
        with valkey.pipeline() as pipe:
            pipe.watch(TABLE_KEY)  # type: ignore[no-untyped-call]  # redis-py types it not
            head = GENERATION.match(cast("bytes", pipe.getrange(TABLE_KEY, 0, HEAD_BYTES)))
            there = int(head[1]) if head else -1
            if there > row.generation or (there == row.generation and not force):
                return there
            pipe.multi()
            pipe.set(TABLE_KEY, bytes(row.table))
            pipe.publish(TABLE_CHANNEL, str(row.generation))
            try:
                pipe.execute()
            except WatchError:
                continue
            return there
    return -1


def _endpoint(
    endpoint: Endpoint,
    variants: list[Variant],
    replicas: dict[int, list[Replica]],
    steps: dict[int, list[PipelineStep]],
    adapters: dict[int, list[Adapter]],
) -> EndpointRoute:
    return EndpointRoute(
        name=endpoint.name,
        model=endpoint.model.name,
        salt=endpoint.salt,
        public=endpoint.access == Endpoint.Access.PUBLIC,
        timeout_ms=endpoint.timeout_ms,
        queue_limit=endpoint.queue_limit,
        variants=[
            _variant(v, replicas, steps.get(v.version_id, []), adapters.get(v.pk, []))
            for v in variants
            if v.version.signature
        ],
        created_unix_s=int(endpoint.created_at.timestamp()),
        team=endpoint.team.name,
        may_pin=endpoint.may_pin,
        steering=msgspec.convert(endpoint.steering, Steering | None),
        recording=msgspec.convert(endpoint.recording, Recording | None),
    )


def _variant(
    variant: Variant, replicas: dict[int, list[Replica]], steps: list[PipelineStep], adapters: list[Adapter]
) -> VariantRoute:
    rows = replicas.get(variant.version_id, [])
    return VariantRoute(
        version=variant.version.number,
        arm=variant.role,
        weight_bp=variant.weight_bp,
        signature=msgspec.convert(variant.version.signature, Signature),
        settings=_settings(variant.version),
        replicas=_routes(rows),
        pipeline=PipelineRoute([_step(step, replicas.get(step.version_id, [])) for step in steps]) if steps else None,
        adapters=[adapter.name for adapter in adapters if standing(adapter, rows).is_served],
    )


def _step(step: PipelineStep, replicas: list[Replica]) -> StepRoute:
    return StepRoute(
        name=step.name,
        model=step.version.model.name,
        version=step.version.number,
        signature=msgspec.convert(step.version.signature, Signature),
        input_map=step.input_map,
        output_map=step.output_map,
        replicas=_routes(replicas),
        settings=_settings(step.version),
        max_inflight=step.max_inflight,
    )


def _routes(replicas: list[Replica]) -> list[ReplicaRoute]:
    return [ReplicaRoute(str(r.id), r.route_generation, r.route_address) for r in routable(replicas)]


def _steps() -> dict[int, list[PipelineStep]]:
    """Pipeline's version id -> its steps, for the pipelines that are behind an endpoint."""
    found: dict[int, list[PipelineStep]] = {}
    behind = Variant.objects.values("version_id")
    rows = PipelineStep.objects.filter(pipeline__in=behind).select_related("version__model")
    for row in rows.order_by("pipeline_id", "position"):
        found.setdefault(row.pipeline_id, []).append(row)
    return found


def _adapters() -> dict[int, list[Adapter]]:
    """Variant's id -> its adapters."""
    found: dict[int, list[Adapter]] = {}
    for row in Adapter.objects.select_related("version").order_by("variant_id", "name"):
        found.setdefault(row.variant_id, []).append(row)
    return found


def _settings(version: Version) -> RuntimeSettings:
    """The version's settings. Those that this release cannot read must not keep every endpoint from being published."""
    try:
        return msgspec.convert(version.settings, RuntimeSettings)
    except msgspec.ValidationError as error:
        _warn_once(str(version), str(error))
        return RuntimeSettings()


@lru_cache(maxsize=1000)  # the table is built every second
def _warn_once(version: str, error: str) -> None:
    log.warning("the settings of %s cannot be read, defaults are published: %s", version, error)


def _replicas() -> dict[int, list[Replica]]:
    """Version id -> its replicas that were ready once and are still wanted."""
    found: dict[int, list[Replica]] = {}
    rows = Replica.objects.filter(wanted="run").exclude(route_address="").select_related("deployment").order_by("id")
    for row in rows:
        found.setdefault(row.deployment.version_id, []).append(row)
    return found


def routable(replicas: list[Replica]) -> list[Replica]:
    """Those that a gateway shall know: see the law of this file."""
    serving = [r for r in replicas if r.phase in {"ready", "lost"} or r.route_generation < r.generation]
    return serving or replicas


def _keys(endpoints: Iterable[Endpoint]) -> list[KeyRoute]:
    """Digests of keys that are neither revoked nor expired, with the endpoints of their team that they may call."""
    of_team: dict[int, set[str]] = {}
    for endpoint in endpoints:
        of_team.setdefault(endpoint.team_id, set()).add(endpoint.name)
    valid = ApiKey.objects.filter(Q(expires_at__isnull=True) | Q(expires_at__gt=Now()), revoked_at__isnull=True)
    return [
        KeyRoute(
            id=key.id,
            digest=key.digest,
            endpoints=allowed_endpoints(key, of_team.get(key.team_id, set())),
            expires_at_unix_s=key.expires_at.timestamp() if key.expires_at else None,
            requests_per_s=key.requests_per_s,
            rows_per_s=key.rows_per_s,
        )
        for key in valid.order_by(F("id"))
    ]


def allowed_endpoints(key: ApiKey, team_endpoints: set[str]) -> list[str]:
    """Names that the key may call; "*", which is every endpoint of every team, only for a platform admin's key."""
    scope = {str(name) for name in key.endpoints}
    if key.platform_admin:
        return ["*"] if "*" in scope else sorted(scope)
    return sorted(team_endpoints if "*" in scope else scope & team_endpoints)
