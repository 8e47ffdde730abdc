"""What is summed of copied requests beside what is summed of all: how far their answers are from the live ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Copies:
    """compared: copies whose answer was compared, of them drifted; drift_sum, drift_sq: of their distances (0..1);
    dropped: requests that were to be copied and were not, for want of room.
    """

    compared: int = 0
    drifted: int = 0
    drift_sum: float = 0.0
    drift_sq: float = 0.0
    dropped: int = 0

    def add(self, other: Copies) -> None:
        self.compared += other.compared
        self.drifted += other.drifted
        self.drift_sum += other.drift_sum
        self.drift_sq += other.drift_sq
        self.dropped += other.dropped

    def observe(self, distance: float, *, is_drift: bool) -> None:
        self.compared += 1
        self.drifted += is_drift
        self.drift_sum += distance
        self.drift_sq += distance * distance

    def told(self) -> dict[str, Any]:
        """By the names that protocol.samples.Sample has for them."""
        return asdict(self)
