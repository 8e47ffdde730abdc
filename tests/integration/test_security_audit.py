"""H12: every change and its entry in the audit trail are one transaction, for every writing route of the table.

The trail is made to refuse: then no row may be other than before, and nobody may be told that something was done.
"""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.db import connection

from tests.integration.test_security_routes import CALLS, UNCHANGED, World, furnished, world  # noqa: F401
from tests.support.routes import ROUTES

WRITING = [(route, method) for route, method in CALLS if method not in {"GET", "HEAD"}]
REFUSES = """
CREATE FUNCTION refuse_entry() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no entry today'; END $$;
CREATE TRIGGER no_entry_today BEFORE INSERT ON accounts_auditentry FOR EACH ROW EXECUTE FUNCTION refuse_entry();
"""
# Sessions come with logging in, the routing table with its secret is what rows look like to gateways, and the last use of
# a key is no decision of a person.
PASSED_OVER, COLUMNS = {"django_session", "endpoints_publishedtable"}, ["last_login", "last_used_at"]


def rows() -> dict[str, Any]:
    """Table -> a digest of all its rows."""
    tables = {model._meta.db_table for model in apps.get_models(include_auto_created=True)} - PASSED_OVER
    found = {}
    with connection.cursor() as cursor:
        for table in sorted(tables):
            cursor.execute(
                f"SELECT count(*), md5(coalesce(string_agg(one, '|' ORDER BY one), '')) "
                f'FROM (SELECT (to_jsonb(t) - %s::text[])::text AS one FROM "{table}" t) AS found',
                [COLUMNS],
            )
            found[table] = cursor.fetchone()
    return found


@pytest.mark.parametrize(("route", "method"), WRITING)
def test_without_its_entry_nothing_is_changed(world: World, route: str, method: str) -> None:  # noqa: F811
    caller = world.person("root")
    before = rows()
    with connection.cursor() as cursor:
        cursor.execute(REFUSES)
    answer = world.call(route, method, caller, ROUTES[route].methods[method].body)
    after = rows()
    assert {table: (before[table][0], after[table][0]) for table in before if before[table] != after[table]} == {}
    assert answer.status_code >= 400 or route in UNCHANGED, f"{method} {route} was done without an entry"
    assert b"no entry today" not in getattr(answer, "content", b"")


def test_the_check_sees_a_changed_row(world: World) -> None:  # noqa: F811
    before = rows()
    world.cast.developer.email = "elsewhere@example.com"
    world.cast.developer.save()
    assert {table for table, found in rows().items() if found != before[table]} == {"accounts_user"}
