"""What the version's queue policies say about one request: its level and how long it may wait. Pure.

Levels as in Triton: 1 is the highest, requests that name none (0) take the default. Without priorities there is one
level, 0, and what a request names is ignored. A request's own timeout only ever shortens the policy's. Behind all
levels stands the background: copies of live requests, which may fill no more than half of the line.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from inference.errors import InvalidInput
from inference.protocol.messages import BACKGROUND
from inference.protocol.settings import QueuePolicy, RuntimeSettings


@dataclass(frozen=True, slots=True)
class Policies:
    """levels: how many, 0 without priorities; default: the level of requests that name none; by_level: from 0 on."""

    levels: int = 0
    default: int = 0
    by_level: tuple[QueuePolicy, ...] = (QueuePolicy(),)

    @property
    def are_plain(self) -> bool:
        """Whether they say nothing, so that nothing need be looked up."""
        return not self.levels and self.by_level == (QueuePolicy(),)

    @property
    def background(self) -> int:
        """The level behind all others, that of those who waited too long."""
        return self.levels + 1

    def policy(self, level: int) -> QueuePolicy:
        return self.by_level[min(level, self.levels)]

    def level(self, priority: int) -> int:
        """Raises InvalidInput for a level that there is not."""
        if priority == BACKGROUND:
            return self.background
        if not self.levels or not priority:
            return self.default
        if not 1 <= priority <= self.levels:
            raise InvalidInput(f"priority must be 1 (highest) to {self.levels}, or 0 for the default, not {priority}")
        return priority

    def is_full(self, level: int, waiting: int) -> bool:
        largest = self.policy(level).max_queue_size
        return bool(largest) and waiting >= largest

    def may_wait_s(self, level: int, asked_us: int) -> float:
        """How long a request may wait in the queue; `asked_us` counts only below the policy's own (0: not asked)."""
        policy = self.policy(level)
        timeout_us = policy.default_timeout_us
        if policy.allow_timeout_override and 0 < asked_us < timeout_us:
            timeout_us = asked_us
        return timeout_us / 1e6 if timeout_us else inf

    def delays(self, level: int) -> bool:
        """Whether who waited too long goes behind all others instead of being refused."""
        return self.policy(level).timeout_action == "delay"


PLAIN = Policies()


def of(settings: RuntimeSettings) -> Policies:
    """The settings' policies. A default level of 0, or one that there is not, is the lowest."""
    levels = settings.priority_levels
    if not levels:
        return Policies(by_level=(settings.queue_policy,))
    wanted = settings.default_priority_level
    own = [settings.priority_policies.get(str(level), settings.queue_policy) for level in range(levels + 1)]
    return Policies(levels, wanted if 1 <= wanted <= levels else levels, tuple(own))
