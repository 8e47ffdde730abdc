"""How values are shown, and that no text becomes markup."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.prose import markdown
from console.templatetags import serinus as tags

TAG = re.compile(r"<\s*([a-zA-Z!/?]+[0-9]?)")
ALLOWED = {
    "a",
    "p",
    "br",
    "strong",
    "em",
    "code",
    "pre",
    "ul",
    "ol",
    "li",
    "blockquote",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
}
ALLOWED |= {"table", "thead", "tbody", "tr", "th", "td"}


@given(st.text(max_size=200) | st.sampled_from(["<script>x</script>", "[a](javascript:x)", "![i](http://x/y.png)"]))
def test_markdown_never_gives_a_tag_that_acts(text: str) -> None:
    html = str(markdown(text))
    assert {name.lstrip("/").lower() for name in TAG.findall(html)} <= ALLOWED
    assert "javascript:" not in re.findall(r'href="([^"]*)', html)
    assert not re.search(r"<[^>]* on\w+=", html)


def test_markdown_is_markdown() -> None:
    assert "<strong>ten</strong>" in markdown("Tells **ten** apart")
    assert 'rel="noopener noreferrer"' in markdown("[x](https://example.org/)")
    assert "<script" not in markdown("<script>x</script>")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (None, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (5 << 40, "5.0 TB")]
)
def test_sizes(size: int | None, text: str) -> None:
    assert tags.as_bytes(size) == text


@pytest.mark.parametrize(("weight", "text"), [(0, "0 %"), (1, "0.01 %"), (1250, "12.5 %"), (10_000, "100 %")])
def test_shares(weight: int, text: str) -> None:
    assert tags.bp(weight) == text


@given(st.text(max_size=40), st.text(max_size=40))
def test_badges_and_bars_escape(state: str, label: str) -> None:
    for html in (tags.badge(state, label), tags.bar(1, 2, label), tags.split_bar([(label, 10_000)])):
        assert html.count("<") == html.count(">")
        assert "style=" not in re.sub(r'"[^"]*"', "", html)


@given(st.floats(-1e3, 1e12), st.floats(0, 1e12))
def test_a_bar_never_leaves_its_frame(value: float, total: float) -> None:
    width = float(re.findall(r'width="([\d.]+)%"', tags.bar(value, total, ""))[0])
    assert 0 <= width <= 100
