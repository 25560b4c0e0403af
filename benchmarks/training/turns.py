"""Contenders that are all loaded at once and work one at a time: each step waits for its turn.

What is compared is measured within seconds of one another, so that a machine which is slower for a while is so for all.
A contender tells a JSON line when it is ready and after each step, on a pipe of its own; its turn is a line on another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

VARIABLE = "TIERMESH_BENCH_TURNS"
"""Names a contender's ends of both pipes."""


class Turns:
    """A contender's side."""

    def __init__(self) -> None:
        reads, writes = map(int, os.environ[VARIABLE].split(","))
        self._orders, self._told = os.fdopen(reads), os.fdopen(writes, "w")
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def wait(self, **told: Any) -> None:
        """Tell of what was done since the last turn began, and return when the next one does; ends the process when
        there is none."""
        seconds, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_began
        self._told.write(json.dumps({"seconds": seconds, "cpu_s": cpu_s, **told}) + "\n")
        self._told.flush()
        if not self._orders.readline():
            _end()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Who takes part: its module under `benchmarks.training` with arguments, and what is set for it."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    steps: int = 1
    """In one turn, so that turns of all take about as long."""


class Runner:
    """A contender's process, ready for its turns."""

    def __init__(self, contender: Contender, process: subprocess.Popen[bytes], orders: TextIO, told: TextIO) -> None:
        self.contender = contender
        self._process, self._orders, self._told = process, orders, told

    def hear(self) -> dict[str, Any]:
        """The next line that it tells. Raises `RuntimeError` when it has ended instead."""
        line = self._told.readline()
        if not line:
            raise RuntimeError(f"{self.contender.name} ended with {self._process.wait()}; see its log")
        told: dict[str, Any] = json.loads(line)
        return told

    def step(self) -> dict[str, Any]:
        """One step."""
        self._orders.write("\n")
        self._orders.flush()
        return self.hear()

    def peak_bytes(self) -> int:
        """The most that was ever resident, as the system counts it."""
        with open(f"/proc/{self._process.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


@contextmanager
def running(contender: Contender, log: Path) -> Iterator[Runner]:
    """Start it; it is ended at the exit."""
    reads, gives_orders = os.pipe()
    hears, writes = os.pipe()
    environment = {**os.environ, **contender.environment, VARIABLE: f"{reads},{writes}"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *contender.arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
            pass_fds=(reads, writes),
        )
    os.close(reads)
    os.close(writes)
    with os.fdopen(gives_orders, "w") as orders, os.fdopen(hears) as told:
        try:
            yield Runner(contender, process, orders, told)
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def turned(runners: Sequence[Runner], by: int) -> list[Runner]:
    """Another one begins each round."""
    by %= len(runners)
    return [*runners[by:], *runners[:by]]


def _end() -> NoReturn:
    os._exit(0)
