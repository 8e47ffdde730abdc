"""The parts of `make bench-peers-language` that calculate; its engines are run by it alone."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time

import pytest

from tests.benchmarks.bench_language import ANSWERS, GAPS, PROMPTS, Streamed
from tests.benchmarks.peers.language import __main__ as program
from tests.benchmarks.peers.language import measured, tables
from tests.benchmarks.peers.language.environments import wanted
from tests.benchmarks.peers.language.measured import Endpoint, Window

FAST = Window(100, 4000, 6000, 100, 700, 10, 1.5, 0.1, 0.2)
SLOW = Window(80, 5000, 8000, 200, 350, 20, 1.9, 0.1, 0.0)


def answered(tokens: int, sent: float = 0.0) -> Streamed:
    """First token after 2 s, then one every 100 ms."""
    return Streamed(sent, [sent + 2 + 0.1 * at for at in range(tokens)], tokens)


def test_w3_is_as_it_was_published():
    assert (len(PROMPTS), sum(PROMPTS), sum(ANSWERS), len(GAPS)) == (32, 4348, 2268, 32)


def test_prompts_are_cut_to_w3s_lengths_and_differ_by_seed():
    by_word = {word: at for at, word in enumerate(sorted(measured.WORDS))}
    first, again, other = (
        measured.prompts(lambda text: [by_word[word] for word in text.split()], seed) for seed in (99, 99, 100)
    )
    assert [len(ids) for ids in first] == PROMPTS
    assert first == again
    assert all(one[:8] != two[:8] for one, two in zip(first, other, strict=True))


def test_arrivals_are_at_once_or_at_the_rate():
    assert measured.arrivals(None) == [0.0] * 32
    late = measured.arrivals(0.5)
    assert late[0] == GAPS[0] / 0.5
    assert late[-1] == pytest.approx(sum(GAPS) / 0.5)


def test_a_window_is_what_the_streams_showed():
    found = measured.window([answered(tokens) for tokens in ANSWERS], 20.0, (36.0, 30.0, 2.0))
    assert found.tokens_per_s == pytest.approx(113.4)
    assert (found.first_p50_ms, found.first_p99_ms) == pytest.approx((2000, 2000))
    assert (found.gap_p50_ms, found.gap_p99_ms) == pytest.approx((100, 100))
    assert found.cpu_ms_per_token == pytest.approx(30_000 / 2268)
    assert (found.server_cores, found.client_cores, found.foreign_cores) == pytest.approx((1.5, 0.1, 0.2))


def test_a_window_with_lost_tokens_is_refused():
    with pytest.raises(AssertionError, match="2267 tokens came, not 2268"):
        measured.window([answered(tokens - (at == 0)) for at, tokens in enumerate(ANSWERS)], 20.0, (0.0, 0.0, 0.0))


def test_the_median_is_taken_field_by_field():
    third = Window(90, 9000, 7000, 50, 800, 5, 1.0, 0.3, 0.1)
    assert measured.median([FAST, SLOW, third]) == Window(90, 5000, 7000, 100, 700, 10, 1.5, 0.1, 0.1)


def test_only_whole_answers_agree():
    assert measured.agreeing([[1, 2], [3], [4]], [[1, 2], [3, 5], [4]]) == 2


def test_ratios_are_ours_over_theirs():
    found = {
        (tables.BURST, "serinus"): [FAST],
        (tables.BURST, "vllm"): [SLOW],
        (tables.POISSON, "vllm"): [SLOW],
    }
    assert tables.ratios(found, "serinus")[4:] == ["| burst | vllm | 1.25 | 0.80 | 0.75 | 0.50 | 2.00 | 0.50 |"]


def test_every_window_is_a_row_with_every_column():
    found = {(tables.BURST, "serinus"): [FAST, SLOW], (tables.POISSON, "serinus"): [FAST]}
    head, rule, *rows = tables.windows(found)
    assert len(rows) == 3
    assert {line.count("|") for line in (head, rule, *rows)} == {len(tables.HEAD) + 1}
    assert rows[0] == "| burst | serinus | 100.0 | 4000 | 6000 | 100 | 700 | 10.0 | 1.50 | 0.10 | 0.20 |"


def test_requirements_lose_torch_extras_and_other_machines():
    given = [
        "torch==2.13.0+cpu; platform_machine == 'x86_64'",
        "torchvision",
        "numpy>=2; python_version > '3'",
        "colorama; sys_platform == 'win32'",
        "pandas; extra == 'bench'",
        "fastapi[standard]<0.137.0,>=0.133.0",
    ]
    assert wanted(given) == ["numpy>=2", "fastapi[standard]<0.137.0,>=0.133.0"]


def test_cpu_seconds_of_processes_that_are_gone_are_none():
    before = measured.cpu_s([os.getpid()])
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert measured.cpu_s([os.getpid(), 1 << 30]) >= before + 0.05
    assert measured.busy_s() > 0


def test_a_lock_that_is_held_is_waited_for_and_then_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "ALONE_S", 0.3)
    lock = tmp_path / "lock"
    with lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="was not free"), program.held(lock):
            pass
    with program.held(lock), lock.open("a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Door:
    """A completions door on a real socket: three tokens and a usage, or a refusal."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bodies: list[dict] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.split("content-length:")[1].split("\r\n")[0])
        self.bodies.append(json.loads(await reader.readexactly(size)))
        events = [{"choices": [{"text": "x", "token_ids": [at]}]} for at in range(3)]
        events.append({"choices": [], "usage": {"completion_tokens": 3}})
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        writer.write(f"HTTP/1.1 {self.status} X\r\nConnection: close\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()


async def test_streams_are_read_with_ids_and_usage():
    door = Door()
    server = await asyncio.start_server(door.answer, "127.0.0.1", 0)
    async with server:
        at = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", "m")
        found = await measured.asked(at, [{"prompt": [1], "max_tokens": 3}] * 2, [0.0, 0.05])
    assert [(one.ids, one.tokens, len(one.times)) for one in found] == [([0, 1, 2], 3, 3)] * 2
    assert found[1].sent - found[0].sent >= 0.04
    assert door.bodies[0]["ignore_eos"] is True
    assert (door.bodies[0]["temperature"], door.bodies[0]["model"]) == (0, "m")


def test_a_refused_request_ends_the_program_with_what_was_said():
    async def ask() -> None:
        server = await asyncio.start_server(Door(400).answer, "127.0.0.1", 0)
        async with server:
            at = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", "m")
            await measured.asked(at, [{"prompt": [1], "max_tokens": 3}], [0.0])

    with pytest.raises(SystemExit, match="completion_tokens"):
        asyncio.run(ask())
