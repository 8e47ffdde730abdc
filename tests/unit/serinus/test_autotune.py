"""What a sweep advises, and what its page and plot say; settings typed on the command line."""

import xml.etree.ElementTree as ET

import pytest

from serinus.autotune import Candidate, Load, Report, grid, markdown, options, rows, svg
from serinus.commands.models import settings_given
from serinus.control import ControlError


def candidate(size, rate, p99, errors=0, version=0):
    return Candidate(
        {"max_batch_size": size}, Load(rate, 1, p99 * 2, errors), Load(rate / 2, 1, p99, 0, rate / 2), version
    )


def report(*candidates, objective_ms=0.0):
    return Report("e<>", "m", 8, objective_ms, list(candidates))


def test_the_quickest_tail_near_the_best_throughput_is_advised():
    quick, fast, slow = candidate(8, 97, 5), candidate(32, 100, 20), candidate(1, 20, 1)
    assert report(slow, fast, quick).advised is quick


def test_an_objective_comes_before_throughput_where_it_can_be_held():
    fast, slow = candidate(32, 100, 20), candidate(1, 20, 1)
    assert report(fast, slow, objective_ms=10).advised is slow
    assert report(fast, slow, objective_ms=0.5).advised is fast
    assert "NOT held" in markdown(report(fast, objective_ms=0.5), "p.svg")


def test_who_failed_requests_is_never_advised():
    assert report(candidate(1, 100, 1, errors=3)).advised is None
    assert "log" in markdown(report(candidate(1, 100, 1, errors=3)), "p.svg")


def test_a_sweep_tries_no_window_with_batches_of_one():
    found = grid([1, 8], [0.0, 5.0], [100])
    assert found == [
        {"max_batch_size": 1},
        {"max_batch_size": 8, "window_ms": 0.0},
        {"max_batch_size": 8, "window_ms": 5.0},
        {"max_batch_size": 8, "max_queue_delay_us": 100},
    ]


def test_the_plot_is_well_formed_whatever_the_names_and_shows_every_candidate():
    found = report(candidate(1, 20, 1), candidate(8, 97, 5), objective_ms=3)
    picture = ET.fromstring(svg(found))
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 2
    ET.fromstring(svg(report()))
    assert [row[0] for row in rows(found)] == ["* max_batch_size=1", "max_batch_size=8"]


def test_settings_on_the_command_line_come_back_as_they_were_written():
    given = {"instances": 2, "preferred_batch_sizes": [4, 8], "task": "x"}
    assert settings_given(["instances=2", "preferred_batch_sizes=[4, 8]", "task=x"]) == given
    assert options({"a": [1]}) == "--set 'a=[1]'"
    with pytest.raises(ControlError, match="NAME=JSON"):
        settings_given(["instances"])
