"""Measure the kernel beside transformers and llama.cpp's server: one model, the same questions, in turns.

Figures are only as good as the machine is quiet. Exit status 1: somebody's answers are not what the model says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.kernel import machine, moments, plot, report
from benchmarks.kernel.answer import Engine
from benchmarks.kernel.checks import Verdict, judge
from benchmarks.kernel.engines import Piped, Served
from benchmarks.kernel.prompts import prompts
from benchmarks.kernel.rounds import Trials, run_rounds
from tiermesh.adapters.model_source import pull
from tiermesh.kernel.inference.threads import default_threads

MODEL, GGUF = "smollm2:135m", "smollm2:135m-q4_1"
"""The same weights: the first is the second, converted."""
SLOTS, CONTEXT = 16, 2048
"""As many as are ever asked at once; llama.cpp sets the memory of all apart."""
REFEREE = "generate fp32"
"""Holds the answers of all against the model in full precision."""
OURS = "tiermesh"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_kernel", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 32 tokens, at 1 and 8 requests")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--tokens", type=int, help="of each answer; default: 64")
    parser.add_argument("--requests", type=int, nargs="+", help="how many at once; default: 1 2 4 8 16")
    parser.add_argument("--only", action="append", metavar="ENGINE", help="repeatable; default: all")
    parser.add_argument("--worker", default="", help="further options of our worker, in one argument")
    parser.add_argument("--out", type=Path, default=Path("build/bench_kernel"), help="folder for table, plot, figures")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.tokens = options.tokens or (32 if options.quick else 64)
    options.requests = options.requests or ([1, 8] if options.quick else [1, 2, 4, 8, 16])
    options.out.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if asyncio.run(run(options)) else 1)


async def run(options: argparse.Namespace) -> bool:
    """Measure and tell; gives whether all answers were right."""
    said = [f"{machine.described()}; load before: {machine.load():.2f}"]
    if machine.load() > machine.BUSY:
        print("· this machine is busy with something else; do not trust the figures", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tiermesh-bench-") as folder:
        every = engines_of(options, Path(folder))
        wanted = [engine for engine in every if not options.only or engine.name in options.only]
        async with AsyncExitStack() as stack:
            for engine in [engine for engine in every if engine in wanted or engine.name == REFEREE]:
                began = time.perf_counter()
                stack.push_async_callback(engine.close)
                await engine.start()
                say(f"{engine.name} is ready after {time.perf_counter() - began:.1f} s")
            trials = await run_rounds(
                wanted,
                prompts(),
                rounds=options.rounds,
                counts=options.requests,
                tokens=options.tokens,
                say=say,
            )
            further = await _moments([engine for engine in wanted if isinstance(engine, Served)], options.rounds)
            referee = next(engine for engine in every if isinstance(engine, Piped) and engine.name == REFEREE)
            verdicts = await judge(referee, [made[0] for made in trials.made.values()])
    names = [engine.name for engine in wanted]
    said += [report.table(trials, names, options.requests), report.promises(trials, amx=machine.has_amx())]
    said += [further, report.verdicts(verdicts)]
    print("\n\n".join(said))
    _write(options, trials, names, said)
    return all(_is_right(one) for one in verdicts.values())


def engines_of(options: argparse.Namespace, folder: Path) -> list[Engine]:
    """In the order of the table."""
    model, gguf, threads = pull(MODEL), pull(GGUF), default_threads()
    log = options.out / "engines.log"
    log.unlink(missing_ok=True)

    def served(name: str, module: str, socket: str, weights: Path, *further: str) -> tuple[str, list[str], Path, Path]:
        where = ["--socket", str(folder / socket), "--model", str(weights), "--threads", str(threads)]
        return name, [module, *where, *further], folder / socket, log

    ours = ("--name", "m", "--digest", model.digest)
    room = ("--slots", str(SLOTS), "--context-length", str(CONTEXT))
    ids, kernel, bf16 = {"return_token_ids": True}, "tiermesh.kernel.inference", ("--precision", "bf16")
    plain = (model.path, log, threads)
    return [
        Served(*served(OURS, kernel, "auto.sock", model.path, *ours, *options.worker.split()), ids),
        Served(*served("tiermesh fp32", kernel, "fp32.sock", model.path, *ours, "--precision", "fp32"), ids),
        Served(*served("tiermesh q4_1", "tiermesh.kernel.llamacpp", "q4.sock", gguf.path, *ours, *room)),
        Piped(REFEREE, *plain),
        Piped("generate bf16", *plain, *bf16),
        Piped("generate_batch", *plain, *bf16, "--batching", "continuous"),
        Piped("generate_batch tuned", *plain, *bf16, "--batching", "tuned"),
        Served(*served("llama.cpp", "benchmarks.kernel.llama_server", "llama.sock", gguf.path, *room)),
    ]


def say(line: str) -> None:
    print(f"· {line}", file=sys.stderr)


async def _moments(servers: Sequence[Served], rounds: int) -> str:
    lines = ["| moment | measured |", "|---|---|"]
    for server in servers:
        late = [await moments.late_arrival(server, number) for number in range(rounds)]
        turns = [await moments.second_turn(server, number) for number in range(rounds)]
        lines += [moments.late_line(server.name, late), moments.turn_line(server.name, turns)]
        say(f"{server.name}: late arrivals and second turns done")
    return "\n".join(lines)


def _is_right(verdict: Verdict) -> bool:
    """Other precisions choose differently where two tokens are close, and only there."""
    return verdict.share > 0.9 and verdict.worst_gap < 1.0


def _write(options: argparse.Namespace, trials: Trials, names: list[str], said: list[str]) -> None:
    (options.out / "table.md").write_text("\n\n".join(said) + "\n")
    speeds = {f"{engine}, {count}": trials.speeds(engine, count) for engine, count in trials.made}
    (options.out / "figures.json").write_text(json.dumps(speeds, indent=1))
    plot.draw(trials, names, options.requests, said[0], options.out / "plot.png")
    say(f"table, plot and figures are in {options.out}")


if __name__ == "__main__":
    main()
