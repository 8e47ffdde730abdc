"""Sections of a page of figures: one program writes the page, another keeps a section of its own in it."""

from __future__ import annotations

PEERS = "## Beside its peers (`make bench-peers`)"


def section(page: str, title: str) -> str:
    """The section under this heading ("## ..."), with it, up to the next of its level; "" where there is none."""
    _, mark, after = f"\n{page}".partition(f"\n{title}\n")
    return f"{title}\n" + after.partition("\n## ")[0].rstrip() + "\n" if mark else ""


def with_section(page: str, lines: list[str]) -> str:
    """The page with these lines, of which the first is the heading, in the place of the section of that heading before,
    or at the end.
    """
    title, made = lines[0], "\n".join(lines).rstrip() + "\n"
    before, mark, after = f"\n{page}".partition(f"\n{title}\n")
    later = after.partition("\n## ")[2] if mark else ""
    return f"{before.strip()}\n\n{made}" + (f"\n## {later}" if later else "")
