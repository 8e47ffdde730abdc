"""How the platform is, in one sentence. Pure: it is told the facts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Facts:
    """What a person may see, counted. dark: endpoints with traffic assigned to a version without a ready replica."""

    endpoints: int = 0
    dark: list[str] = field(default_factory=list)
    hosts: int = 0
    lost_hosts: list[str] = field(default_factory=list)
    validating: int = 0
    awaiting: int = 0
    error_share: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """tone: good, warn, bad or idle."""

    tone: str
    sentence: str


HIGH_ERROR_SHARE = 0.05


def judge(facts: Facts) -> Health:
    """The worst thing first; what merely goes on, after it."""
    bad = _troubles(facts)
    if bad:
        return Health("bad", _sentence(bad))
    warnings = _warnings(facts)
    if warnings:
        return Health("warn", _sentence(warnings))
    if not facts.endpoints:
        return Health("idle", "Nothing is deployed yet.")
    return Health("good", f"{_all(facts.endpoints)} with every version ready.")


def _troubles(facts: Facts) -> list[str]:
    found = []
    if facts.dark:
        found.append(
            f"{_names(facts.dark, 'endpoint')} {_have(facts.dark)} no ready replica for a version with traffic"
        )
    if facts.error_share is not None and facts.error_share >= HIGH_ERROR_SHARE:
        found.append(f"{facts.error_share:.0%} of requests fail")
    if not facts.hosts:
        found.append("no host has joined, so nothing can be checked or served")
    elif len(facts.lost_hosts) == facts.hosts:
        found.append("no host answers")
    return found


def _warnings(facts: Facts) -> list[str]:
    found = []
    if facts.lost_hosts:
        found.append(f"{_names(facts.lost_hosts, 'host')} {'does' if len(facts.lost_hosts) == 1 else 'do'} not answer")
    if facts.awaiting:
        found.append(
            f"{facts.awaiting} version{'s' * (facts.awaiting > 1)} await{'s' * (facts.awaiting == 1)} approval"
        )
    return found


def _names(names: list[str], kind: str) -> str:
    shown = ", ".join(f"“{name}”" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind}{'s' * (len(names) > 1)} {shown}{more}"


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _all(count: int) -> str:
    return "The one endpoint answers" if count == 1 else f"All {count} endpoints answer"


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
