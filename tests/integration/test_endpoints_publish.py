"""The routing table on its way to Valkey: counted, never going back, back within one pass after a flush."""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis
from django.db.models.functions import Now

from accounts.models import ApiKey, Role
from endpoints import actions, publish
from endpoints.models import PublishedTable
from fleet.models import Deployment, Host, Replica
from inference.protocol.routes import TABLE_CHANNEL, TABLE_KEY, RoutingTable, decode
from tests.support.fleet_cast import person, team, version

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def valkey(settings):
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.delete(TABLE_KEY)
        yield client
        client.delete(TABLE_KEY)


def table_in(valkey) -> RoutingTable:
    return decode(valkey.get(TABLE_KEY))


def replica(number: int = 1, *, phase: str = "ready", generation: int = 1, routed: int = 1, **more) -> Replica:
    host, _ = Host.objects.get_or_create(name="a")
    values = {"phase": phase, "generation": generation, "route_generation": routed, "host": host} | more
    row = Replica.objects.create(deployment=Deployment.objects.get(version__number=number), **values)
    if routed and "route_address" not in more:
        row.route_address = f"unix:/run/{row.id}"
        row.save()
    return row


@pytest.fixture
def endpoint():
    return actions.deploy(version=version(), actor=person("dev", Role.DEVELOPER))


def routes(number: int = 1) -> list[tuple[str, int]]:
    variants = publish.build_table().endpoints[0].variants
    return [(r.id, r.generation) for v in variants if v.version == number for r in v.replicas]


def test_the_table_says_what_the_rows_say(endpoint) -> None:
    row = replica()
    found = publish.build_table(secret="s").endpoints[0]
    assert (found.name, found.model, found.public, found.salt) == ("digits", "digits", False, endpoint.salt)
    variant = found.variants[0]
    assert (variant.version, variant.arm, variant.weight_bp) == (1, "primary", 10_000)
    assert variant.signature.inputs[0].name == "x"
    assert variant.replicas[0].address == f"unix:/run/{row.id}"


@pytest.mark.parametrize(("settings", "largest"), [({"max_batch_size": 4}, 4), ({"max_batch_size": 4, "new": 1}, 0)])
def test_settings_of_another_release_do_not_keep_the_table_back(settings: dict[str, int], largest: int) -> None:
    actions.deploy(version=version(settings=settings), actor=person("dev", Role.DEVELOPER))
    (variant,) = publish.build_table().endpoints[0].variants
    assert variant.settings.max_batch_size == largest


def test_a_version_without_traffic_is_there_for_its_number(endpoint) -> None:
    actions.deploy(version=version(), actor=person("d2", Role.DEVELOPER))
    row = replica(2)
    assert routes(2) == [(str(row.id), 1)]


@pytest.mark.parametrize(
    ("phase", "generation", "routed", "known"),
    [
        ("ready", 1, 1, True),
        ("lost", 1, 1, True),  # its agent is silent; it may well serve on
        ("pending", 2, 1, True),  # it moves; the old one serves until the new one is ready
        ("loading", 2, 1, True),
        ("backoff", 1, 1, True),  # nobody else is there: requests wait in its listener
        ("loading", 1, 1, True),
        ("pending", 1, 0, False),  # never was ready
        ("loading", 1, 0, False),
    ],
)
def test_which_lone_replica_is_known_to_gateways(
    endpoint, phase: str, generation: int, routed: int, known: bool
) -> None:
    row = replica(phase=phase, generation=generation, routed=routed)
    assert routes() == ([(str(row.id), routed)] if known else [])


def test_a_restarting_replica_is_left_out_while_another_serves(endpoint) -> None:
    replica(phase="backoff")
    other = replica()
    assert routes() == [(str(other.id), 1)]


def test_a_replica_that_is_to_stop_is_left_out_at_once(endpoint) -> None:
    replica(wanted="stop")
    assert routes() == []


def test_keys_are_published_with_the_endpoints_they_may_call(endpoint) -> None:
    actions.deploy(version=version("letters", of=team("crows")), actor=person("crow", Role.ADMIN, team("crows")))

    def key(name: str, **more) -> str:
        ApiKey.objects.create(**({"id": name.ljust(12, "0"), "digest": "d" * 64, "name": name, "team": team()} | more))
        return name.ljust(12, "0")

    everything = key("all", endpoints=["*"])
    narrow = key("narrow", endpoints=["digits", "letters"])
    none = key("none", endpoints=[])
    platform = key("platform", endpoints=["*"], platform_admin=True)
    later = key("later", endpoints=["*"], expires_at=Now() + timedelta(hours=1))
    key("revoked", endpoints=["*"], revoked_at=Now())
    key("expired", endpoints=["*"], expires_at=Now() - timedelta(seconds=1))
    found = {k.id: k for k in publish.build_table().keys}
    assert {k: found[k].endpoints for k in found} == {
        everything: ["digits"],
        narrow: ["digits"],
        none: [],
        platform: ["*"],
        later: ["digits"],
    }
    assert found[everything].expires_at_unix_s is None


def test_the_generation_counts_changes_and_nothing_else(endpoint, valkey) -> None:
    assert publish.publish() == 1
    assert publish.publish() == 1
    assert table_in(valkey).generation == 1
    replica()
    assert publish.publish() == 2
    assert len(table_in(valkey).endpoints[0].variants[0].replicas) == 1
    assert publish.publish() == 2


def test_a_change_is_announced_and_sameness_is_not(endpoint, valkey) -> None:
    with valkey.pubsub() as ears:
        ears.subscribe(TABLE_CHANNEL)
        ears.get_message(timeout=1)
        publish.publish()
        assert ears.get_message(timeout=1)["data"] == b"1"
        publish.publish()
        assert ears.get_message(timeout=0.05) is None
        publish.publish(force=True)
        assert ears.get_message(timeout=1)["data"] == b"1"


def test_a_flushed_table_is_back_with_the_next_pass(endpoint, valkey) -> None:
    publish.publish()
    before = valkey.get(TABLE_KEY)
    valkey.delete(TABLE_KEY)
    publish.publish()
    assert valkey.get(TABLE_KEY) == before


def test_an_older_or_broken_table_is_replaced(endpoint, valkey) -> None:
    publish.publish()
    good = valkey.get(TABLE_KEY)
    for bad in (b'{"generation":0,"endpoints":[]}', b"no table", b""):
        valkey.set(TABLE_KEY, bad)
        publish.publish()
        assert valkey.get(TABLE_KEY) == good


def test_it_goes_past_a_newer_table_and_never_back(endpoint, valkey) -> None:
    publish.publish()
    valkey.set(TABLE_KEY, b'{"generation":41,"endpoints":[]}')
    assert publish.publish() == 42
    assert table_in(valkey).generation == 42
    assert table_in(valkey).endpoints[0].name == "digits"
    assert publish.publish() == 42


def test_an_old_publisher_that_wakes_late_overwrites_nothing(endpoint, valkey) -> None:
    publish.publish()
    old = PublishedTable.objects.get()
    replica()
    publish.publish()
    assert publish._write(valkey, old, force=True) == 2
    assert table_in(valkey).generation == 2


def test_a_dead_valkey_is_no_error(endpoint, settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert publish.publish() == 1
    replica()
    assert publish.publish() == 2


def test_the_playgrounds_secret_stays(endpoint, valkey) -> None:
    secret = publish.token_secret()
    assert len(secret) == 64
    publish.publish()
    assert publish.token_secret() == secret == table_in(valkey).token_secret


def test_building_takes_a_fixed_number_of_queries(endpoint, django_assert_num_queries) -> None:
    replica()
    for name in ("one", "two", "three"):
        actions.deploy(version=version(name), actor=person(f"p-{name}", Role.ADMIN))
    with django_assert_num_queries(6):
        publish.build_table()
