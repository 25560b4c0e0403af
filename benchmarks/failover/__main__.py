"""`python -m benchmarks.failover`: a machine dies, freezes, or was leading the others, under load, as a table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from tests import tiny_model

from benchmarks.failover import seams
from benchmarks.failover.trials import (
    STALL_S,
    STREAMS,
    Fault,
    Lost,
    Survived,
    coordinator_lost,
    questions,
    serving,
    sixteen_streams,
    undisturbed,
)
from benchmarks.gateway.machine import described, wait_until_idle
from tiermesh.adapters.model_source import pull

REAL = "smollm2:135m"
TINY_TOKENS, REAL_TOKENS = 300, 64
"""Of each answer: so many that all sixteen still run when the machine is harmed."""
ROUNDS = 3
STEADY_S = 15.0
IDLE_S = 60.0
KILL_PAUSE_S = 2.0
LEADER_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    wanted: str
    measured: str
    kept: bool


def main() -> None:
    """Measure, print, and exit with 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/bench_failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each trial")
    parser.add_argument("--seconds", type=float, default=STEADY_S, help="of load while a coordinator dies")
    parser.add_argument("--only", choices=["tiny", "real"], help="one of the two models")
    options = parser.parse_args()
    print(f"{described()}; {wait_until_idle(IDLE_S):.0%} of the processors used by others\n", file=sys.stderr)
    rows = asyncio.run(_run(options.rounds, options.seconds, options.only))
    print("| what | must reach | measured | verdict |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.wanted} | {row.measured} | {'kept' if row.kept else 'missed'} |")
    sys.exit(0 if all(row.kept for row in rows) else 1)


async def _run(rounds: int, seconds: float, only: str | None) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tiermesh-failover-") as name:
        if only != "real":
            folder = _made(Path(name) / "of-tiny")
            rows += await _tiny(folder, tiny_model.build_folder(folder / "tiny"), rounds, seconds)
        if only != "tiny":
            model = pull(REAL)
            for precision in ("fp32", "bf16"):
                rows += await _real(_made(Path(name) / precision), model.path, precision, rounds)
    return rows


async def _tiny(folder: Path, model: Path, rounds: int, seconds: float) -> list[Row]:
    """Faults in a mesh whose model takes no time."""
    async with serving(folder, str(model), "fp32") as served:
        asked = questions(STREAMS)
        alone = [heard.text for heard in await undisturbed(served, asked, TINY_TOKENS)]
        rows = []
        faults: dict[Fault, float] = {"SIGKILL": KILL_PAUSE_S, "SIGSTOP": STALL_S}
        for fault, bound_s in faults.items():
            trials = [await sixteen_streams(served, asked, TINY_TOKENS, fault) for _ in range(rounds)]
            rows += [_equal_row(f"node {fault}, tiny model, fp32", trials, alone), _pause_row(fault, trials, bound_s)]
        rows.append(_lost_row([await coordinator_lost(served, seconds) for _ in range(rounds)]))
    return rows


async def _real(folder: Path, model: Path, precision: Literal["fp32", "bf16"], rounds: int) -> list[Row]:
    """The same with a model that people use."""
    async with serving(folder, REAL, precision) as served:
        print(f"· {REAL} in {precision} is loaded", file=sys.stderr)
        asked = questions(STREAMS)
        alone = [heard.text for heard in await undisturbed(served, asked, REAL_TOKENS)]
        what = f"node SIGKILL, SmolLM2-135M, {precision}"
        print(f"· {what}", file=sys.stderr)
        trials = [await sixteen_streams(served, asked, REAL_TOKENS, "SIGKILL") for _ in range(rounds)]
    if precision == "fp32":
        row = _equal_row(what, trials, alone)
    else:
        judged = [await seams.judge(model, asked, one.heard, one.cuts, folder / "judge.log") for one in trials]
        row = _seam_row(what, trials, judged, alone)
    return [row, _pause_row("SIGKILL", trials, KILL_PAUSE_S)]


def _equal_row(what: str, trials: Sequence[Survived], alone: Sequence[str]) -> Row:
    whole = [sum(heard.whole for heard in trial.heard) for trial in trials]
    same = [sum(heard.text == text for heard, text in zip(trial.heard, alone, strict=True)) for trial in trials]
    return Row(
        f"{what}: {STREAMS} streams",
        f"{STREAMS} whole, usage exact, text as undisturbed",
        f"{min(whole)} whole, {min(same)} equal in the worst of {_rounds(trials)}; {_moved(trials)} moved",
        min(whole) == min(same) == STREAMS,
    )


def _seam_row(what: str, trials: Sequence[Survived], judged: Sequence[seams.Seams], alone: Sequence[str]) -> Row:
    whole = min(sum(heard.whole for heard in trial.heard) for trial in trials)
    same = [sum(heard.text == text for heard, text in zip(trial.heard, alone, strict=True)) for trial in trials]
    return Row(
        f"{what}: {STREAMS} streams",
        f"{STREAMS} whole, usage exact, nothing lost or repeated at the seam",
        f"{whole} whole, text = tokens in {min(one.worded for one in judged)}; largest gap to fp32's choice "
        f"{max(one.worst_gap for one in judged):.2f}, {min(one.lacking_gap for one in judged):.2f} with a token left "
        f"out; {_rounds(trials)}, {_moved(trials)} moved; {min(same)} to {max(same)} as undisturbed",
        whole == STREAMS and all(one.clean for one in judged),
    )


def _pause_row(fault: Fault, trials: Sequence[Survived], bound_s: float) -> Row:
    pauses, prefills = ([getattr(trial, name) for trial in trials] for name in ("pause_s", "prefill_s"))
    return Row(
        f"the longest pause of a reader, {fault}",
        f"<= {bound_s:g} s + prefill" + (" (stall_timeout_s: 2)" if fault == "SIGSTOP" else ""),
        f"median {median(pauses):.2f} s, max {max(pauses):.2f} s, n = {len(trials)}; first token of {STREAMS} at once "
        f"{median(prefills):.2f} s",
        all(pause <= bound_s + prefill for pause, prefill in zip(pauses, prefills, strict=True)),
    )


def _lost_row(trials: Sequence[Lost]) -> Row:
    failed = sum(len(trial.failures) for trial in trials)
    return Row(
        "coordinator SIGKILLed under 20 requests/s, half of them streams",
        f"0 failed, none paused over {LEADER_PAUSE_S:g} s",
        f"{failed} of {sum(trial.requests for trial in trials)} failed; longest pause "
        f"{max(trial.pause_s for trial in trials):.2f} s ({max(trial.before_s for trial in trials):.2f} s before it), "
        f"n = {len(trials)}",
        not failed and all(trial.pause_s <= LEADER_PAUSE_S for trial in trials),
    )


def _moved(trials: Sequence[Survived]) -> str:
    return f"{sum(trial.moved for trial in trials)} of {sum(len(trial.heard) for trial in trials)}"


def _rounds(trials: Sequence[Survived]) -> str:
    return f"{len(trials)} rounds" if len(trials) != 1 else "1 round"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
