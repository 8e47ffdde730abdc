"""Arithmetic of traffic shares. Pure: shares are basis points and sum to 10,000."""

from __future__ import annotations

from inference.protocol.routes import WEIGHT_TOTAL_BP


def make_room(shares: dict[int, int], number: int, wanted_bp: int) -> dict[int, int]:
    """`shares` with `wanted_bp` for version `number`; the others keep their proportions and fill up the rest.

    Remainders go to the largest fractions, then to the lowest numbers, so the sum is exact and the answer unique.
    When no other version has a share, version `number` gets everything.
    """
    others = {n: share for n, share in shares.items() if n != number}
    total = sum(others.values())
    if not total:
        return dict.fromkeys(others, 0) | {number: WEIGHT_TOTAL_BP}
    rest = WEIGHT_TOTAL_BP - wanted_bp
    exact = {n: divmod(share * rest, total) for n, share in others.items()}
    scaled = {n: whole for n, (whole, _) in exact.items()}
    left = rest - sum(scaled.values())
    for n in sorted(exact, key=lambda n: (-exact[n][1], n))[:left]:
        scaled[n] += 1
    return scaled | {number: wanted_bp}
