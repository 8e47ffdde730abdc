"""`can` is one table; these are its promises."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.models import Role, Team
from accounts.names import check_slug, is_storable
from accounts.permissions import ANONYMOUS, MAY, SYSTEM, Actor, Verb, can, require
from inference.errors import ClientError, Forbidden

RED, BLUE = Team(id=1, name="red"), Team(id=2, name="blue")


@dataclass
class Thing:
    team: Team = field(default_factory=lambda: RED)


@dataclass
class Part:
    model: Thing = field(default_factory=Thing)


def member(role: str, team: int = 1) -> Actor:
    return Actor("user", "ann", {team: role})


@pytest.mark.parametrize("verb", list(Verb))
def test_nobody_unknown_may_anything(verb: Verb) -> None:
    for thing in (None, RED, Thing(), Part()):
        assert not can(ANONYMOUS, verb, thing)


@given(st.sampled_from(Role.values), st.sampled_from(list(Verb)))
def test_a_role_says_nothing_about_other_teams(role: str, verb: Verb) -> None:
    for thing in (BLUE, Thing(BLUE), Part(Thing(BLUE))):
        assert not can(member(role), verb, thing)
        assert can(SYSTEM, verb, thing)


def test_each_role_may_all_that_the_ones_before_it_may() -> None:
    roles = [MAY[role] for role in Role.values]
    assert all(lower < higher for lower, higher in itertools.pairwise(roles))


@given(st.sampled_from(Role.values), st.sampled_from(list(Verb)))
def test_a_part_has_the_team_of_its_whole(role: str, verb: Verb) -> None:
    expected = verb in MAY[role]
    assert can(member(role), verb, RED) is expected
    assert can(member(role), verb, Thing()) is expected
    assert can(member(role), verb, Part()) is expected


@given(st.sampled_from(Role.values), st.sampled_from([verb for verb in Verb if verb is not Verb.VIEW]))
def test_what_belongs_to_the_platform_is_the_superusers(role: str, verb: Verb) -> None:
    assert not can(member(role), verb, object())


def test_a_refusal_names_the_right_and_the_team() -> None:
    with pytest.raises(Forbidden, match=r"deploy in team 'red'"):
        require(member("viewer"), Verb.DEPLOY, RED)


@given(st.text(max_size=80))
def test_a_slug_is_never_a_path(text: str) -> None:
    try:
        slug = check_slug("thing", text)
    except ClientError:
        return
    assert slug == text
    assert slug.isascii()
    assert not set(slug) & set("./\\%\0 \n")


@given(st.text())
def test_storable_text_can_be_stored(text: str) -> None:
    if is_storable(text):
        assert "\0" not in text.encode().decode()
