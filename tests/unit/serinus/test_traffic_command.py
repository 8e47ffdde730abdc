from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serinus.commands.traffic import weights
from serinus.control import ControlError


def test_shares_become_basis_points() -> None:
    assert weights(["1=90", "2=9.5", "3=0.5"]) == {"1": 9000, "2": 950, "3": 50}


@pytest.mark.parametrize("bad", [["1=90"], ["1=90", "2=20"], ["one=100"], ["1"], ["1=x"], []])
def test_shares_that_are_no_split_are_refused(bad: list[str]) -> None:
    with pytest.raises(ControlError):
        weights(bad)


@given(st.integers(0, 10_000))
def test_any_split_in_basis_points_can_be_said(share_bp: int) -> None:
    found = weights([f"1={share_bp / 100}", f"2={(10_000 - share_bp) / 100}"])
    assert found == {"1": share_bp, "2": 10_000 - share_bp}
