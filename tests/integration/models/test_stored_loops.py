"""Compiled loops out of the store: by another process, within the walls of the sandbox too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.protocol import compiled
from inference.replica import landlock

MULTIPLY = """
import ctypes, json, sys
import numba, numpy as np
from inference.models.on_torch import stored
from inference.models.on_torch import addresses

def multiplied(by):
    @numba.njit(inline="never")
    def times(one):  # too long to be put where it is called
        held = np.zeros(8, np.int64)
        for index in range(by):
            held[index % 8] += one
        held.sort()
        return held.sum()

    @addresses.apart("iii", by)
    def scale(out: int, x: int, count: int) -> None:
        added, given = addresses.words(out, count), addresses.words(x, count)
        room = np.empty(count, np.int64)
        for index in range(count):
            room[index] = times(given[index]) if index % 2 else -times(-given[index])
            added[index] = room[index]
    return scale

def out_of(scale, by):
    @addresses.called(numba.int64[::1], numba.int64[::1], form=by)
    def both(out, x):
        scale(np.intp(out.ctypes.data), np.intp(x.ctypes.data), len(x))

    x, out = np.arange(5), np.zeros(5, np.int64)
    both(out, x)
    return out.tolist()

found = [out_of(multiplied(by), by) for by in map(int, sys.argv[2:])]
print(json.dumps([stored.counts.read, stored.counts.made, *found]))
"""
WITHIN = """
import sys
from pathlib import Path
from inference.replica.sandbox import Limits, Plan, enter
enter(Plan(Path(sys.argv[1]), limits=Limits(memory_bytes=4 << 30)))
"""


def said(place: Path | str, program: str, *given: str) -> list[object]:
    env = {**os.environ, compiled.VARIABLE: str(place), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *given], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")
def test_one_process_keeps_what_another_reads_within_the_walls_where_nothing_can_be_kept(tmp_path):
    place, scratch, thrice, four_times = tmp_path / "kept", tmp_path / "scratch", [0, 3, 6, 9, 12], [0, 4, 8, 12, 16]
    scratch.mkdir()
    assert said(place, MULTIPLY, str(scratch), "3") == [0, 2, thrice]
    before = sorted(path.name for path in place.iterdir())
    within = said(place, WITHIN + MULTIPLY, str(scratch), "3", "4")
    assert within == [2, 2, thrice, four_times], "another form is another function, which is compiled there"
    assert sorted(path.name for path in place.iterdir()) == before
    [torn] = [place / name for name in before if "scale-3" in name]
    torn.write_bytes(torn.read_bytes()[:-9])
    assert said(place, MULTIPLY, str(scratch), "3") == [1, 1, thrice], "what is torn is compiled anew"
    assert compiled.read(torn.name, place)


def test_what_two_processes_kept_does_not_mix_in_a_third(tmp_path):
    """Each has a helper of the same name, which does something else in each form."""
    place, scratch = tmp_path / "kept", str(tmp_path)
    assert said(place, MULTIPLY, scratch, "3") == [0, 2, [0, 3, 6, 9, 12]]
    assert said(place, MULTIPLY, scratch, "4") == [0, 2, [0, 4, 8, 12, 16]]
    assert said(place, MULTIPLY, scratch, "4", "3", "5") == [
        4,
        2,
        [0, 4, 8, 12, 16],
        [0, 3, 6, 9, 12],
        [0, 5, 10, 15, 20],
    ]
