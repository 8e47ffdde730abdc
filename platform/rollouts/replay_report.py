"""What replayed requests come to: sums that can be added up slice by slice, and whether they pass. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference.protocol.samples import bucket_of, quantile_ms

MAX_WORST = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one recorded request. error: its code, "" for an answer; skipped: why it could not be asked again.
    distance None: not compared, as nobody can say what the right answer is.
    """

    record: int
    recorded_ms: float = 0.0
    replayed_ms: float = 0.0
    error: str = ""
    skipped: str = ""
    distance: float | None = None
    is_drift: bool = False
    output: str = ""
    kind: str = ""
    detail: str = ""
    request: str = ""

    def shown(self) -> dict[str, Any]:
        return {
            "record": self.record, "distance": self.distance, "output": self.output, "kind": self.kind,
            "detail": self.detail, "error": self.error, "request": self.request, "recorded_ms": self.recorded_ms,
            "replayed_ms": self.replayed_ms,
        }  # fmt: skip


@dataclass(slots=True)
class Report:
    """The sums of a replay; fields as in replay_models.Replay."""

    requests: int = 0
    skipped: int = 0
    errors: int = 0
    error_counts: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    drifted: int = 0
    drift_sum: float = 0.0
    latencies: dict[str, dict[str, int]] = field(default_factory=dict)
    worst: list[dict[str, Any]] = field(default_factory=list)

    def add(self, asked: Asked) -> None:
        if asked.skipped:
            self.skipped += 1
            return
        self.requests += 1
        if asked.error:
            self.errors += 1
            self.error_counts[asked.error] = self.error_counts.get(asked.error, 0) + 1
        else:
            self._took("recorded", asked.recorded_ms)
            self._took("replayed", asked.replayed_ms)
        if asked.distance is not None:
            self.compared += 1
            self.drifted += asked.is_drift
            self.drift_sum += asked.distance
        if asked.error or asked.distance:
            self.worst = sorted([*self.worst, asked.shown()], key=_badness, reverse=True)[:MAX_WORST]

    def _took(self, side: str, ms: float) -> None:
        counts, bucket = self.latencies.setdefault(side, {}), str(bucket_of(ms))
        counts[bucket] = counts.get(bucket, 0) + 1

    def quantiles(self) -> dict[str, dict[str, float | None]]:
        """{"recorded" | "replayed": {"p50_ms", "p99_ms"}}"""
        found = {}
        for side in ("recorded", "replayed"):
            counts = {int(bucket): count for bucket, count in self.latencies.get(side, {}).items()}
            found[side] = {"p50_ms": quantile_ms(counts, 0.5), "p99_ms": quantile_ms(counts, 0.99)}
        return found


def _badness(shown: dict[str, Any]) -> float:
    return 2.0 if shown["error"] else float(shown["distance"] or 0.0)


def judged(report: Report, max_drift_share: float) -> tuple[str, str]:
    """("passed" | "failed" | "no_data", in words)."""
    if not report.requests:
        return "no_data", "No recorded request could be asked again."
    counted = f"{report.requests} recorded requests were asked again"
    if report.errors:
        most = max(report.error_counts, key=lambda code: report.error_counts[code])
        return "failed", f"{counted}: {report.errors} ended in an error, most often {most}."
    if not report.compared:
        return "passed", f"{counted} without an error; none of their answers can be compared."
    share, mean = report.drifted / report.compared, report.drift_sum / report.compared
    drift = (
        f"{report.drifted} of {report.compared} answers are other than recorded ({share:.1%}, mean distance {mean:.3g})"
    )
    if share > max_drift_share:
        return "failed", f"{counted}: {drift}; {max_drift_share:.1%} is allowed."
    return "passed", f"{counted}: {drift}."
