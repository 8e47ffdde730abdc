"""What bounds a batcher, and how a model's rows come to have lengths: values, made once from a version's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inference.batching.objective import Objective
from inference.batching.policies import PLAIN, Policies
from inference.batching.preparation import Prepare
from inference.batching.window import Rules
from inference.runtime.runner import Ran
from inference.runtime.work import Arrays

RunBatch = Callable[[list[Arrays]], Ran]


@dataclass(frozen=True, slots=True)
class Bounds:
    """queue_limit: requests that may wait; hang_timeout_s: a pass longer than this is taken for hung; delay_until: so
    many must wait before the first pass; objective_s: a p99 to be held by choosing window and size, 0 for none;
    keeps_window: then only the size is chosen. inline_below_s: passes that are expected to take less run in the event
    loop itself, which saves handing them to a lane; there only the kernel's alarm ends one that hangs. 0: none do.
    """

    rules: Rules
    queue_limit: int = 1024
    hang_timeout_s: float = 30.0
    policies: Policies = PLAIN
    delay_until: int = 0
    preserve_ordering: bool = False
    objective_s: float = 0.0
    keeps_window: bool = False
    inline_below_s: float = 0.0

    def objective(self) -> Objective | None:
        """What holds the latency objective; None without one."""
        if not self.objective_s:
            return None
        return Objective(self.objective_s, self.rules, keeps_window=self.keeps_window)


@dataclass(frozen=True, slots=True)
class Lengths:
    """For models whose rows have lengths (see models.contract). pads: similar lengths should run together."""

    prepare: Prepare
    restore: Callable[[Arrays, int], Arrays] | None = None
    pads: bool = False
