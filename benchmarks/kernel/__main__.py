"""Measure the kernel beside transformers and llama.cpp's server: one model, the same questions, in turns."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.kernel import report
from benchmarks.kernel.answer import Engine
from benchmarks.kernel.checks import judge
from benchmarks.kernel.engines import Piped, Served
from benchmarks.kernel.prompts import prompts
from benchmarks.kernel.rounds import run_rounds
from tiermesh.adapters.model_source import pull
from tiermesh.kernel.inference.threads import default_threads

MODEL, GGUF = "smollm2:135m", "smollm2:135m-q4_1"
"""The same weights: the first is the second, converted."""
SLOTS = 16
"""As many as are ever asked at once; llama.cpp divides its context among them."""
CONTEXT = 2048
ENGINES = ("tiermesh", "generate fp32", "generate bf16", "generate_batch", "generate_batch tuned", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_kernel", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of 32 tokens, at 1 and 8 requests")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--tokens", type=int, help="of each answer; default: 64")
    parser.add_argument("--requests", type=int, nargs="+", help="how many at once; default: 1 2 4 8 16")
    parser.add_argument("--only", action="append", choices=ENGINES, help="repeatable")
    parser.add_argument("--worker", default="", help="further options of our worker, in one argument")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.tokens = options.tokens or (32 if options.quick else 64)
    options.requests = options.requests or ([1, 8] if options.quick else [1, 2, 4, 8, 16])
    options.only = options.only or list(ENGINES)
    asyncio.run(run(options))


async def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="tiermesh-bench-") as folder:
        async with AsyncExitStack() as stack:
            engines = engines_of(options, Path(folder))
            wanted = [engine for engine in engines if engine.name in options.only]
            for engine in {*wanted, engines[1]}:
                stack.push_async_callback(engine.close)
                await engine.start()
            questions = prompts()
            trials = await run_rounds(
                wanted,
                questions,
                rounds=options.rounds,
                counts=options.requests,
                tokens=options.tokens,
                say=lambda line: print(f"· {line}", file=sys.stderr),
            )
            referee = engines[1]
            assert isinstance(referee, Piped)
            verdicts = await judge(referee, [made[0] for made in trials.made.values()])
    print(report.table(trials, options.only, options.requests))
    print(report.verdicts(verdicts))


def engines_of(options: argparse.Namespace, folder: Path) -> list[Engine]:
    """In the order of the table."""
    model, threads, log = pull(MODEL), default_threads(), Path("/tmp/bench_kernel.log")
    socket = ("--socket", str(folder / "ours"))
    identity = ("--model", str(model.path), "--name", "m", "--digest", model.digest)
    ours = ("tiermesh.kernel.inference", *socket, *identity, "--threads", str(threads), *options.worker.split())
    theirs = ("--socket", str(folder / "llama.sock"), "--model", str(pull(GGUF).path), "--threads", str(threads))
    room = ("--slots", str(SLOTS), "--context-length", str(CONTEXT))
    return [
        Served("tiermesh", ours, folder / "ours", log),
        Piped("generate fp32", model.path, log, threads),
        Piped("generate bf16", model.path, log, threads, "--precision", "bf16"),
        Piped("generate_batch", model.path, log, threads, "--precision", "bf16", "--batching", "continuous"),
        Piped("generate_batch tuned", model.path, log, threads, "--precision", "bf16", "--batching", "tuned"),
        Served("llama.cpp", ("benchmarks.kernel.llama_server", *theirs, *room), folder / "llama.sock", log),
    ]


if __name__ == "__main__":
    main()
