"""Measure this gateway beside nginx, LiteLLM's proxy and the least that aiohttp can do: one upstream, the same load.

Every answer is compared with what the upstream said. Exit status 1: an answer was wrong, or a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.gateway import machine, plot, report
from benchmarks.gateway.contenders import Upstream, contenders, find_nginx
from benchmarks.gateway.rounds import Plan, Trials, run_memory, run_rounds

WRONG_SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, no test of memory")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--seconds", type=float, help="of each measurement; default: 5")
    parser.add_argument("--only", action="append", metavar="NAME", help="repeatable, beside direct and tiermesh")
    parser.add_argument("--litellm", type=Path, help="its program; without it LiteLLM is left out")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--out", type=Path, default=Path("build/bench_gateway"), help="folder for table, plot, figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        rounds=options.rounds or (1 if options.quick else 5),
        busy=32,
        seconds=options.seconds or (2.0 if options.quick else 5.0),
        streams=64,
        events=200,
        event_gap_s=0.005,
    )
    sys.exit(0 if uvloop.run(run(options, plan)) else 1)


async def run(options: argparse.Namespace, plan: Plan) -> bool:
    """Measure and tell; gives whether all was right."""
    share = machine.wait_until_idle(options.patience)
    if share > machine.BUSY:
        say(f"others use {share:.0%} of this machine; do not trust the figures")
    with tempfile.TemporaryDirectory(prefix="tiermesh-bench-") as folder:
        upstream = Upstream(Path(folder) / "upstream", plan.event_gap_s * 1000)
        every = contenders(Path(folder), upstream, nginx=find_nginx(), litellm=options.litellm)
        kept = {report.DIRECT, report.OURS, *(options.only or [one.name for one in every])}
        every = [one for one in every if one.name in kept]
        try:
            for one in every:
                await one.start()
                say(f"{one.name} answers")
            trials = await run_rounds(every, plan, say)
            if not options.quick:
                ours = next(one for one in every if one.name == report.OURS)
                await run_memory(ours, plan.busy, trials, say)
        finally:
            for one in every:
                one.stop()
    return _tell(options.out, plan, trials, [one.name for one in every], share)


def say(line: str) -> None:
    print(f"· {line}", file=sys.stderr)


def _tell(out: Path, plan: Plan, trials: Trials, names: list[str], share: float) -> bool:
    title = f"{machine.described()}; {share:.0%} in use before; {plan.rounds} rounds"
    text = "\n\n".join([title, report.table(trials, names), report.promises(trials, plan)])
    print(text)
    wrong = trials.wrong()
    for problem in wrong[:WRONG_SHOWN]:
        say(problem)
    say(f"{len(wrong)} wrong answers")
    (out / "table.md").write_text(text + "\n")
    (out / "figures.json").write_text(json.dumps(_figures(trials), indent=1))
    plot.draw(trials, names, title, out / "plot.png")
    say(f"table, plot and figures are in {out}")
    return not wrong and all(promise.kept for promise in report.kept(trials, plan))


def _figures(trials: Trials) -> dict[str, object]:
    return {
        name: {
            "requests_per_s": [run.per_s for run in runs],
            "cpu_s_a_request": [run.cpu_s / run.requests for run in runs],
            "alone_p50_ms": [run.p50_ms() for run in trials.alone[name]],
            "alone_p99_ms": [run.p99_ms() for run in trials.alone[name]],
            "first_event_p50_ms": [run.p50_ms(first=True) for run in trials.streams[name]],
            "chunks_per_s": report.chunks_per_s(trials, name),
            "memory_bytes": trials.memory.get(name),
        }
        for name, runs in trials.busy.items()
    }


if __name__ == "__main__":
    main()
