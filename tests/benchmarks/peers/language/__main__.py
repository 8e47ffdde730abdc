"""`make bench-peers-language`: Serinus beside vLLM's CPU build, the same fp32 weights, the same requests, alternately.

SmolLM2-135M-Instruct, W3: 32 mixed requests as a burst and as Poisson arrivals, streamed over HTTP. One engine has the
machine at a time; in every round another one begins. Before its window each says 32 tokens to 32 prompts greedily, which
warms it up; the first round's are compared. `--write` puts the section into docs/benchmarks-language.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from inference.models.language_tokenizer import load_tokenizer  # noqa: E402
from tests.benchmarks import pages  # noqa: E402
from tests.benchmarks.__main__ import Report, machine  # noqa: E402
from tests.benchmarks.bench_language import BESIDE, PAGE, RATE  # noqa: E402
from tests.benchmarks.peers.language import tables, weights  # noqa: E402
from tests.benchmarks.peers.language.engines import ENGINES, Engine  # noqa: E402
from tests.benchmarks.peers.language.measured import (  # noqa: E402
    GREEDY_TOKENS,
    OWN_SEED,
    Endpoint,
    Prompts,
    agreeing,
    greedy,
    prompts,
    w3,
)

OURS = "serinus"
WARM_SEED, POISSON_SEED = 7, 70
ALONE_S = 900.0


class Run:
    """Everything that one run measures. texts(seed): prompts; alone(): the machine for one window."""

    def __init__(self, texts: Callable[[int], Prompts], alone: Callable[[], contextlib.AbstractContextManager[None]]):
        self.texts, self.alone = texts, alone
        self.found: tables.Found = {}
        self.said: dict[str, Prompts] = {}

    def turn(self, engine: Engine, number: int, poisson: bool) -> None:
        """One engine's turn in one round: awake, warmed up, measured, at rest again."""
        at = engine.wake()
        try:
            said = greedy(at, self.texts(WARM_SEED + number))
            self.said.setdefault(engine.name, said)
            self._measure(engine, at, tables.BURST, OWN_SEED + number, None)
            if poisson:
                self._measure(engine, at, tables.POISSON, POISSON_SEED, RATE)
        finally:
            engine.rest()

    def _measure(self, engine: Engine, at: Endpoint, what: str, seed: int, rate: float | None) -> None:
        given = self.texts(seed)
        with self.alone():
            found = w3(at, given, engine.pids, rate)
        self.found.setdefault((what, engine.name), []).append(found)
        print(tables.line(what, engine.name, found), flush=True)


@contextlib.contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Holds the lock of this file, where one is given; waits for it at most 15 minutes, then raises TimeoutError."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        # The program waits in the kernel's queue and can give up; the lock it takes is that of our open file.
        told = subprocess.run(["flock", "-w", str(ALONE_S), str(file.fileno())], pass_fds=[file.fileno()], check=False)
        if told.returncode:
            raise TimeoutError(f"{path} was not free within {ALONE_S} s")
        yield


def rounds(run: Run, engines: list[Engine], count: int, report: Report) -> None:
    """All take turns; one that does not start is left out, and the report says so."""
    there = list(engines)
    for number in range(count):
        first = number % max(1, len(there))
        for engine in there[first:] + there[:first]:
            try:
                run.turn(engine, number, poisson=number == 0)
            except RuntimeError as error:
                report.say(f"{engine.name} is left out: {str(error).splitlines()[0]}\n")
                print(error, file=sys.stderr)
                there.remove(engine)


def told(run: Run, report: Report) -> None:
    """The tables, and how far the engines say the same."""
    for line in [*tables.windows(run.found), "", *tables.ratios(run.found, OURS), ""]:
        report.say(line)
    for name, said in run.said.items():
        if name != OURS and OURS in run.said:
            same = agreeing(run.said[OURS], said)
            report.say(
                f"- Greedy answers whose first {GREEDY_TOKENS} tokens are {OURS}'s, token for token: {same} of "
                f"{len(said)} ({name})."
            )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default=",".join(ENGINES), help="of " + ", ".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=3, help="bursts of each; Poisson arrivals come in the first")
    parser.add_argument("--lock", type=Path, help="hold this file's lock (flock) while a window is measured")
    parser.add_argument("--write", action="store_true", help=f"put the section into docs/{PAGE.name}")
    return parser.parse_args()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    given = parsed()
    report = Report()
    report.say(BESIDE)
    report.say(f"\n{datetime.now(UTC):%Y-%m-%d}: {machine()}")
    report.say(
        "SmolLM2-135M-Instruct, one folder of fp32 safetensors for all; W3 (32 requests, 4,348 prompt and 2,268 output "
        f"tokens, greedy, no end of text) streamed over HTTP, {given.rounds} bursts of each in turn. Load average "
        f"before: {os.getloadavg()[0]:.2f}. Serinus is the whole `serinus up`, stopped while others are measured; vLLM is "
        "`vllm serve` as it comes, on both cores, suspended meanwhile. 'foreign': cores that other programs had in the "
        "window; rows with more than 0.3 of it rank nobody.\n"
    )
    with tempfile.TemporaryDirectory(prefix="serinus-peers-", ignore_cleanup_errors=True) as base:
        folder = Path(base)
        held_weights = weights.export(_made(folder / "weights"))
        encode = load_tokenizer(held_weights).encode
        run = Run(lambda seed: prompts(encode, seed), lambda: held(given.lock))
        engines = [ENGINES[name](_made(folder / name), held_weights) for name in given.engines.split(",")]
        try:
            rounds(run, engines, given.rounds, report)
        finally:
            for engine in engines:
                engine.end()
    told(run, report)
    if given.write:
        PAGE.write_text(pages.with_section(PAGE.read_text(), report.lines))


if __name__ == "__main__":
    main()
