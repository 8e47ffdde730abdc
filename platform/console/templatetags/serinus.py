"""How values look on every page: sizes, times, shares, states. Each is escaped; none writes a style attribute (CSP)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince

from console.prose import markdown
from console.rollout_words import Guard
from console.traffic import Traffic

register = template.Library()
TONES = {
    "ready": "good", "passed": "good", "running": "info", "done": "good", "active": "good",
    "delivered": "good", "given_up": "bad", "completed": "good", "in_progress": "info", "finalizing": "info busy", "cancelling": "info busy",
    "validating": "info busy", "starting": "info busy", "loading": "info busy", "warming": "info busy",
    "pending": "info busy", "awaiting_approval": "warn", "draining": "warn", "backoff": "warn", "expired": "warn",
    "progressing": "info busy", "smoke": "info busy", "promoting": "info busy", "aborting": "bad busy", "paused": "warn",
    "inconclusive": "warn", "succeeded": "good", "rolled_back": "bad", "rejected": "bad", "failed": "bad", "lost": "bad", "revoked": "bad", "deactivated": "bad",
}  # fmt: skip
WORDS = {
    "awaiting_approval": "Awaiting approval",
    "backoff": "Restarting",
    "smoke": "Golden inputs",
    "inconclusive": "Cannot tell",
}
MARKS = {"passed": "check", "failed": "cross", "running": "spin", "skipped": "dash"}
NOTHING = "\N{EN DASH}"
WARN_SHARE, BAD_SHARE = 0.8, 0.93


@register.simple_tag
def icon(name: str) -> SafeString:
    return format_html(
        '<svg class="icon" aria-hidden="true"><use href="{}#{}"></use></svg>', static("img/icons.svg"), name
    )


@register.simple_tag
def badge(state: str, word: str = "", tone: str = "") -> SafeString:
    """A lifecycle's state as a coloured word; the colour never stands alone."""
    text = word or WORDS.get(state) or state.replace("_", " ").capitalize()
    return format_html('<span class="badge {}">{}</span>', tone or TONES.get(state, ""), text)


@register.filter
def mark_icon(state: str) -> str:
    return MARKS.get(state, "dash")


@register.filter(name="bytes")
def as_bytes(value: float | None) -> str:
    """1536 -> 1.5 KB."""
    size = float(value or 0)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1024 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return ""


@register.filter
def ms(value: float | None) -> str:
    if value is None:
        return NOTHING
    if 0 < value < 0.1:
        return f"{value * 1000:.1f} µs" if value < 0.01 else f"{value * 1000:.0f} µs"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


@register.filter
def number(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value >= 1_000_000:
        return f"{value / 1_000_000:.1f}M"
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


@register.filter
def thousands(value: int | None) -> str:
    """8192 -> 8,192."""
    return NOTHING if value is None else f"{value:,}"


@register.filter
def signed_percent(share: float | None) -> str:
    """0.0072 -> +0.7 %."""
    return NOTHING if share is None else f"{share * 100:+.1f} %"


@register.filter
def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share * 100:.1f} %"


@register.filter
def bp(weight: int) -> str:
    """Basis points as a percentage: 1250 -> 12.5 %."""
    return f"{weight / 100:g} %"


@register.filter
def when(at: datetime | None) -> SafeString | str:
    """A relative time, with the absolute one as its title; the page's script keeps it fresh."""
    if at is None:
        return "never"
    now = timezone.now()
    words = f"in {timesince(now, at, depth=1)}" if at > now else f"{timesince(at, now, depth=1)} ago"
    return format_html(
        '<time data-ago datetime="{}" title="{} UTC">{}</time>', at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S}", words
    )


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds -> 45 s, 3 min 10 s, 2 h 5 min."""
    if seconds is None:
        return NOTHING
    whole = int(seconds) + (seconds % 1 > 0)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def shape(sizes: list[int]) -> str:
    """[-1, 64] -> [batch or any, 64], short: [?, 64]."""
    return "[" + ", ".join("?" if size < 0 else str(size) for size in sizes) + "]"


@register.simple_tag
def bar(value: float, total: float, label: str, kind: str = "") -> SafeString:
    """How full something is, as a bar whose colour warns. `label` is read aloud."""
    share = min(1.0, max(0.0, value / total)) if total else 0.0
    level = "" if kind else "bad" if share > BAD_SHARE else "warn" if share > WARN_SHARE else ""
    return format_html(
        '<svg class="bar {}" role="img" aria-label="{}"><rect class="{}" width="{}%" height="100%"/></svg>',
        kind, label, level, f"{share * 100:.1f}",
    )  # fmt: skip


@register.simple_tag
def interval(guard: Guard) -> SafeString:
    """A guardrail's interval against zero and its margin. The words beside it say the same."""
    at = guard.picture
    if at is None:
        return format_html('<span class="muted">{}</span>', NOTHING)
    beyond = (0.0, at["margin"]) if at["margin"] < 50 else (at["margin"], 100 - at["margin"])
    return format_html(
        '<svg class="interval {}" role="img" aria-label="{}"><rect class="beyond" x="{}%" width="{}%" height="100%"/>'
        '<line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/><line class="margin" x1="{}%" x2="{}%" y1="0" y2="100%"/>'
        '<rect class="span" x="{}%" y="7" width="{}%" height="8"/><circle cx="{}%" cy="11" r="4"/></svg>',
        guard.tone, guard.told, *beyond, at["margin"], at["margin"], at["low"], at["width"], at["at"],
    )  # fmt: skip


@register.simple_tag
def split_bar(shares: list[tuple[str, int]], kind: str = "") -> SafeString:
    """The traffic's parts side by side, in basis points."""
    left, parts = 0, []
    for place, (_, weight) in enumerate(shares):
        parts.append((f"b{place % 4 + 1}", f"{left / 100:.2f}", f"{weight / 100:.2f}"))
        left += weight
    label = ", ".join(f"{name} {weight / 100:g} %" for name, weight in shares) or "no version"
    rects = format_html_join("", '<rect class="{}" x="{}%" width="{}%" height="100%"/>', parts)
    return format_html('<svg class="bar {}" role="img" data-split-bar aria-label="{}">{}</svg>', kind, label, rects)


@register.filter
def prose(text: str) -> SafeString:
    return markdown(text)


@register.filter
def words(name: str) -> str:
    """set_weights -> set weights."""
    return str(name).replace("_", " ")


@register.filter
def quantity(name: str) -> str:
    """window_ms -> window, ms."""
    head, _, unit = str(name).rpartition("_")
    return f"{words(head)}, {unit}" if head and unit in {"ms", "s"} else words(name)


@register.filter
def p99(traffic: Traffic) -> float | None:
    return traffic.quantile_ms(0.99)


@register.filter
def is_list(value: Any) -> bool:
    return isinstance(value, list)


@register.filter
def hundredth(weight: int) -> str:
    """Basis points as the value of a percentage field."""
    return f"{weight / 100:g}"


@register.filter
def tone(place: int) -> int:
    """Place of a version -> its colour, 1 to 4."""
    return place % 4 + 1


@register.filter
def yesno_access(access: str) -> str:
    """The other access than this one."""
    return "public" if access == "key" else "key"


@register.filter
def add_float(value: float, more: float) -> float:
    """The coordinate `more` below or right of `value`."""
    return round(value + more, 1)
