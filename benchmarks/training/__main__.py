"""Measure fine-tuning beside TRL's SFTTrainer: the same model, the same text, the same threads, step by step in turns.

Rows: speed (equal tokens, with memory and the cost of the guard), short (mixed short records, end to end), start (the
second start on the same data), learning (held-out questions before and after). Figures are only as good as the machine
is quiet; ratios of neighbours in time stand more. Exit status 1: a promise is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.training import learning, machine, plot, report, second_start
from benchmarks.training.docstrings import pages, shorts, write
from benchmarks.training.learning import MODEL
from benchmarks.training.report import Row
from benchmarks.training.rounds import Measured, run_rounds
from benchmarks.training.turns import Contender
from benchmarks.training.workers import plan_run
from tiermesh.adapters.model_source import resolve
from tiermesh.adapters.trainer import default_threads, environment

OURS, PLAIN, DEFAULTS, TUNED = "tiermesh", "tiermesh, plain allocator", "TRL defaults", "TRL tuned"
PARTS = ("speed", "short", "start", "learning")
LENGTH = 512
BATCH = 2
"""Rows of a step where all do the same tokens."""
TRL_BATCH = 8
"""Its default."""
FOR_EVER = 10_000
PAGES = 64


@dataclass(slots=True)
class Bench:
    """What all parts need, and what they found."""

    folder: Path
    model: Path
    threads: int
    rounds: int
    quick: bool
    busy: bool
    out: Path
    rows: list[Row] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    measured: dict[str, Mapping[str, Measured]] = field(default_factory=dict)
    found: dict[str, object] = field(default_factory=dict)

    @property
    def ours(self) -> dict[str, str]:
        """The launcher's environment, with a cache of our own."""
        return {**environment(self.threads), "TIERMESH_CACHE": str(self.folder / "cache"), **self.waiting}

    @property
    def waiting(self) -> dict[str, str]:
        """How all contenders' threads wait for one another. Those that spin, as they do by default, are many times
        slower where others want the processors, which would be measured instead."""
        return {"OMP_WAIT_POLICY": "PASSIVE"} if self.busy else {}

    @property
    def plain(self) -> dict[str, str]:
        """The same without what is set for the allocator."""
        return {name: value for name, value in self.ours.items() if name != "GLIBC_TUNABLES"}

    @property
    def warm_up(self) -> int:
        return 1 if self.quick else 2

    def speed(self) -> None:
        """Rows 1, 3 and 8."""
        data = write(self.folder / "pages.jsonl", pages(PAGES))
        found = self._run(
            "equal tokens",
            [
                self._worker(OURS, data, BATCH, self.ours),
                self._worker(PLAIN, data, BATCH, self.plain),
                self._trl(DEFAULTS, data, "--batch", str(BATCH)),
                self._trl(TUNED, data, "--batch", str(BATCH), "--tuned"),
            ],
        )
        ours, plain, defaults, tuned = found[OURS], found[PLAIN], found[DEFAULTS], found[TUNED]
        self.rows += [
            report.at_least(1, f"speed at {BATCH} x {LENGTH} tokens, over TRL defaults", 1.8, ours.ratios(defaults)),
            report.at_least(1, "the same over TRL tuned", 1.2, ours.ratios(tuned)),
            report.at_most(3, "peak memory, of TRL defaults'", 0.75, ours.peak_bytes / defaults.peak_bytes, "{} x"),
            report.at_most(8, "cost of the guard, of a step", 2.0, 100 * ours.guard_share, "{} %"),
        ]
        without = report.at_least(1, "", 1.8, plain.ratios(defaults)).measured
        tuned_too = report.at_least(1, "", 1.2, plain.ratios(tuned)).measured
        self.said.append(f"Without the allocator's settings: {without} over TRL defaults, {tuned_too} over TRL tuned.")

    def short(self) -> None:
        """Row 2. All as they come: a step of ours is 4 packed rows, one of TRL's 8 padded records."""
        data = write(self.folder / "shorts.jsonl", shorts(TRL_BATCH * (self.rounds + self.warm_up)))
        found = self._run(
            "short records",
            [self._worker(OURS, data, None, self.ours), self._trl(DEFAULTS, data)],
        )
        ours, theirs = found[OURS], found[DEFAULTS]
        whole = ours.whole_speed / theirs.whole_speed
        self.rows.append(report.at_least(2, "useful tokens/s on short records, over TRL defaults", 4.0, [whole]))
        self.said.append(
            f"Short records, data preparation and {self.rounds} rounds together: {ours.whole_speed:.0f} useful "
            f"tokens/s over {theirs.whole_speed:.0f}."
        )

    def start(self) -> None:
        """Row 12."""
        records = 10_000 if self.quick else 100_000
        first, second = second_start.measure(self.folder, self.model, self.ours, threads=self.threads, records=records)
        what = f"second start on {records:,} records, beyond the model's load"
        self.rows.append(report.at_most(12, what, 2.0, second.beyond_s, "{} s"))
        self.said.append(
            f"{records:,} made-up records, {first.tokens:,} tokens: first start {first.beyond_s:.1f} s, "
            f"second {second.beyond_s:.2f} s; from the spawn to the end of the first step, all imports and the model "
            f"included, {first.whole_s:.1f} and {second.whole_s:.1f} s."
        )
        self.found["start"] = [asdict(first), asdict(second)]

    def learning(self) -> None:
        """Row 14."""
        found = learning.learn(
            self.folder, self.model, self.ours, threads=self.threads, minutes=0.5 if self.quick else 4.0
        )
        measured = f"{found.loss_before:.3f} to {found.loss_after:.3f}, {found.overlap} known"
        kept = found.loss_after < found.loss_before and found.overlap == 0
        self.rows.append(Row(14, "held-out loss of docstring questions", "falls; none was trained on", measured, kept))
        self.said.append(learning.told(found))
        self.found["learning"] = asdict(found)

    def _run(self, name: str, contenders: list[Contender]) -> dict[str, Measured]:
        others = machine.Others()
        found = run_rounds(
            contenders, rounds=self.rounds, warm_up=self.warm_up, log=self.out / "contenders.log", say=say
        )
        share = others.share()
        if share > machine.BUSY:
            say(f"others took {share:.0%} of this machine meanwhile; only the ratios mean anything")
        self.measured[name] = found
        if self.busy:
            self.said.append(f"{name}: {report.by_processor(found, OURS)}")
        self.said.append(
            f"### {name}\n\n{report.speeds(found)}\n\n{report.ratios(found, OURS)}\n\nothers took {share:.0%} of the "
            "machine meanwhile"
        )
        return found

    def _worker(self, name: str, data: Path, batch: int | None, settings: Mapping[str, str]) -> Contender:
        size = {} if batch is None else {"micro_batch_size": batch}
        folder = plan_run(
            self.folder / f"{data.stem}-{name.replace(', ', '-').replace(' ', '-')}",
            self.model,
            data,
            num_epochs=FOR_EVER,
            seq_len=LENGTH,
            save_interval=FOR_EVER,
            **size,
        )
        arguments = ("benchmarks.training.ours", str(folder.path), "--threads", str(self.threads))
        return Contender(name=name, arguments=arguments, environment=settings)

    def _trl(self, name: str, data: Path, *options: str) -> Contender:
        arguments = ("benchmarks.training.trl_sft", str(self.model), str(data), "--length", str(LENGTH), *options)
        settings = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        settings |= self.waiting
        return Contender(name=name, arguments=(*arguments, "--threads", str(self.threads)), environment=settings)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="scripts/bench_training", description=__doc__)
    parser.add_argument("--rounds", type=int, help="turns of each contender; default: 12")
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--quick", action="store_true", help="2 rounds, 10,000 records, half a minute of learning")
    parser.add_argument("--busy", action="store_true", help="threads of all contenders sleep while they wait")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of each contender")
    parser.add_argument("--model", default=MODEL, help=f"a name or a folder; default: {MODEL}")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench_training"), help="folder for table, plot, figures"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "contenders.log").unlink(missing_ok=True)
    title = machine.described(options.threads)
    used = machine.used_by_others()
    if used > machine.BUSY:
        print(f"· {used:.0%} of this machine is busy with something else; do not trust the figures", file=sys.stderr)
    rounds = options.rounds or (2 if options.quick else 12)
    with tempfile.TemporaryDirectory(prefix="tiermesh-bench-") as folder:
        bench = Bench(
            Path(folder), resolve(options.model).path, options.threads, rounds, options.quick, options.busy, options.out
        )
        for part in options.only or PARTS:
            getattr(bench, part)()
    said = [
        f"{title}; {options.model}, LoRA r=16 on all linear layers; others used {used:.0%} before",
        report.table(bench.rows),
    ]
    said += bench.said
    print("\n\n".join(said))
    _write(bench, title, said)
    sys.exit(0 if all(row.kept for row in bench.rows) else 1)


def say(line: str) -> None:
    """To a person who waits."""
    print(f"· {line}", file=sys.stderr, flush=True)


def _write(bench: Bench, title: str, said: list[str]) -> None:
    (bench.out / "table.md").write_text("\n\n".join(said) + "\n")
    figures = {name: dict(report.numbers(found)) for name, found in bench.measured.items()} | bench.found
    (bench.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    if bench.measured:
        try:
            plot.draw(bench.measured, title, bench.out / "plot.png")
        except ImportError:
            say("matplotlib is not installed: no plot")
    say(f"table and figures are in {bench.out}")


if __name__ == "__main__":
    main()
