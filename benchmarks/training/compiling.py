"""What compiling the layers costs and gives: seconds to compile, cold and with an earlier process's cache, the time
of a step, and whether it learns the same.

Three runs of one model, data and seed, each in a process of its own: as it comes, compiled with an empty cache,
compiled with the cache that the second one left.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.training.docstrings import pages, write
from benchmarks.training.workers import ALLOCATOR, events, plan_run, run_to_end
from tiermesh.adapters.model_source import resolve
from tiermesh.adapters.trainer import default_threads, environment
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.training_events import Phase, StepDone

MODEL = "smollm2:135m"
WARM_STEPS = 2
APART = 0.02
"""Nats between losses of the same step: compiled layers round otherwise in bf16, and a run adds that up."""
_TOLD = re.compile(r"layers compiled in ([\d.]+) s")


@dataclass(frozen=True, slots=True)
class Compiled:
    """Of one run. `first_s`: the pass that compiles; None where nothing was."""

    first_s: float | None
    step_s: float
    losses: tuple[float, ...]


def measure(folder: RunFolder, cache: Path, *, threads: int) -> Compiled:
    """Run it; its compiler keeps what it made in `cache`."""
    settings = {**environment(threads), **ALLOCATOR, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    settings["TIERMESH_CACHE"] = str(folder.path.parent / "cache")
    run_to_end(folder, threads=threads, environment=settings)
    told = events(folder)
    phases = [found for event in told if isinstance(event, Phase) and (found := _TOLD.search(event.detail))]
    steps = [event for event in told if isinstance(event, StepDone)]
    times = [event.step_s or 0.0 for event in steps[WARM_STEPS:]]
    losses = tuple(event.loss or 0.0 for event in steps)
    return Compiled(float(phases[0][1]) if phases else None, statistics.median(times), losses)


def furthest(one: Compiled, other: Compiled) -> float:
    """The largest difference between losses of the same step."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def main() -> None:
    """Print the table; fail when compiled layers learn something else."""
    parser = argparse.ArgumentParser(prog="scripts/bench_compile", description=__doc__)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--model", default=MODEL, help=f"a name or a folder; default: {MODEL}")
    options = parser.parse_args()
    print(f"{options.model}, LoRA, {options.rows} x {options.length} tokens, {options.threads} threads", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-compile-") as name:
        place = Path(name)
        data = write(place / "data.jsonl", pages(options.rows * (options.steps + 1)))
        found = {}
        for kind, compiled in (("as it comes", False), ("compiled, cold", True), ("compiled, warm", True)):
            folder = plan_run(
                place / kind.replace(", ", "-").replace(" ", "-"),
                resolve(options.model).path,
                data,
                seq_len=options.length,
                micro_batch_size=options.rows,
                max_steps=options.steps,
                num_epochs=1000,
                precision="bf16",
                save_interval=1000,
                compile=compiled,
            )
            found[kind] = measure(folder, place / "inductor", threads=options.threads)
            one = found[kind]
            first = "" if one.first_s is None else f", {one.first_s:.1f} s to compile"
            print(f"{kind:15} {one.step_s:6.2f} s a step{first}, last loss {one.losses[-1]:.4f}", flush=True)
    plain, cold, warm = found.values()
    apart = furthest(plain, warm)
    gain = plain.step_s - warm.step_s
    if gain > 0 and cold.first_s and warm.first_s:
        print(f"it pays from {cold.first_s / gain:.0f} steps on, from {warm.first_s / gain:.0f} with a warm cache")
    print(f"losses of a step differ by {apart:.4f} at most")
    raise SystemExit(0 if apart <= APART else 1)


if __name__ == "__main__":
    main()
