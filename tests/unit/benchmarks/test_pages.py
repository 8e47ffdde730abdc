from __future__ import annotations

import pytest

from tests.benchmarks import bench_language, pages

OTHER, OWN = "## Other", "## Own (`make own`)"
PAGE = f"# Figures\n\nFirst.\n\n{OTHER}\n\n| 1 |\n\n{OWN}\n\nold\n\n### Part\n\nolder\n\n## Last\n\nend\n"


def test_a_section_ends_where_the_next_of_its_level_begins():
    assert pages.section(PAGE, OWN) == f"{OWN}\n\nold\n\n### Part\n\nolder\n"
    assert pages.section(PAGE, "## Last") == "## Last\n\nend\n"
    assert pages.section(PAGE, "## Own") == ""


def test_a_page_may_begin_with_its_section():
    assert pages.section(f"{OWN}\n\nold\n", OWN) == f"{OWN}\n\nold\n"
    assert pages.with_section(f"{OWN}\n\nold\n", [OWN, "new"]).strip() == f"{OWN}\nnew"


def test_a_section_takes_the_place_of_the_one_before():
    made = pages.with_section(PAGE, [OWN, "", "new", ""])
    assert made == f"# Figures\n\nFirst.\n\n{OTHER}\n\n| 1 |\n\n{OWN}\n\nnew\n\n## Last\n\nend\n"
    assert pages.with_section(made, [OWN, "", "new", ""]) == made


def test_a_new_section_comes_last():
    assert pages.with_section("# Figures\n\nFirst.\n", [OWN, "", "new"]) == f"# Figures\n\nFirst.\n\n{OWN}\n\nnew\n"


@pytest.mark.parametrize("before", ["# Old\n\nold\n", None])
def test_a_page_of_language_models_is_written_without_peers(before, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(bench_language, "PAGE", page)
    if before is not None:
        page.write_text(before)
    bench_language.written(["# New", "new"])
    assert page.read_text() == "# New\nnew\n"


def test_a_page_of_language_models_keeps_the_section_beside_peers(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(bench_language, "PAGE", page)
    page.write_text(f"# Old\n\nold\n\n{bench_language.BESIDE}\n\n| kept |\n")
    for _ in range(2):
        bench_language.written(["# New", "new"])
        assert page.read_text() == f"# New\nnew\n\n{bench_language.BESIDE}\n\n| kept |\n"
