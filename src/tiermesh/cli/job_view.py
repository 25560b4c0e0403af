"""Jobs in words for a person: the spec as understood, what it will take, what the gate says, what became of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermesh.cli.render import size
from tiermesh.cli.run_view import PHASES, duration

if TYPE_CHECKING:
    from tiermesh.protocol.jobs import EstimateReport, JobReport, Progress
    from tiermesh.protocol.training import TrainingSpec

LABEL_WIDTH = 12
BAD_SHOWN = 3
"""Lines of data that can't be used; `mesh data inspect` shows more of them."""
DECISIONS = {"approve": "runs", "wait": "waits for your word", "refuse": "refused"}
AFTER_STEPS = {
    "evaluate": "judging the result",
    "save": "saving the result",
    "result": "writing the result",
}
"""What a run still does when all its steps are done."""
HAPPENED_SHOWN = 30
"""The newest events; `mesh jobs report` has them all."""


def labelled(told: Mapping[str, str]) -> list[str]:
    """`name   value`, but for what has no value."""
    return [f"{name:<{LABEL_WIDTH}}{value}" for name, value in told.items() if value]


def spec_lines(spec: TrainingSpec, *, data: str, held_out: str = "") -> list[str]:
    """How a spec was understood; `data` is what is known of its data."""
    return labelled(
        {
            "model": spec.model_name,
            "method": _method(spec),
            "data": data,
            "held out": held_out or f"{spec.held_out_fraction:.0%} of the records" * (spec.held_out_fraction > 0),
            "length": f"{_count(spec.num_epochs, 'epoch')}{f', {spec.max_steps} steps at most' * bool(spec.max_steps)}",
            "batch": _batch(spec),
            "rate": f"{spec.learning_rate:g}, {spec.scheduler.name}, {spec.optimizer.name}; seed {spec.seed}",
            "where": "" if spec.target_gpu == "any" else spec.target_gpu,
            "memory": "" if spec.memory_limit is None else f"{size(spec.memory_limit)} at most",
        }
    )


def looked_at(path: str, told: Mapping[str, Any]) -> str:
    """Data as this machine found it: format, count, lengths, the first lines that can't be used."""
    lengths, bad = told.get("lengths"), told["bad_records"]
    facts = [
        f"{Path(path).name}: {told['format']}",
        f"{told['records']:,} records",
        "lengths unknown" if lengths is None else _lengths(lengths["p50"], lengths["p95"], lengths["max"]),
        f"{told['cut']:,} longer than a row" if told.get("cut") else "",
        f"{bad:,} bad ones left out:" if bad else "",
    ]
    first = [f"{'':<{LABEL_WIDTH}}{told['unit']} {one['line']} {one['reason']}" for one in told["bad"][:BAD_SHOWN]]
    return "\n".join([", ".join(filter(None, facts)), *first])


def estimate_lines(found: EstimateReport) -> list[str]:
    """What it will take, where, and why there."""
    return labelled(
        {
            "node": f"{found.node}{f' ({found.device})' * bool(found.device)}{f': {found.why}' * bool(found.why)}",
            "time": f"{duration(found.seconds)} ({duration(found.seconds_low)} to {duration(found.seconds_high)})"
            + f", {found.steps:,} steps of {found.effective_batch} rows" * bool(found.steps),
            "memory": f"{size(found.memory_bytes)} ({size(found.memory_bytes_low)} to {size(found.memory_bytes_high)})",
            "cost": _cost(found),
            "reckoned": found.basis,
        }
    )


def gate_line(report: JobReport) -> str:
    """What the gate says, or nothing."""
    if report.gate is None:
        return ""
    reason = f": {report.gate.reason}" if report.gate.reason else ""
    return labelled({"gate": f"{DECISIONS[report.gate.decision]}{reason}"})[0]


def job_lines(job: JobReport, now: float) -> list[str]:
    """All about one job; `now` is Unix seconds."""
    told = {
        "job": f"{job.name} ({job.id})",
        "state": job.state + (f": {job.reason}" if job.reason else ""),
        "node": job.node,
        "model": f"{job.model}, {job.method}",
        "data": job.data.name if job.data else "",
        "progress": progress(job),
        "checkpoint": _checkpoint(job),
        "log": _log(job),
        "submitted": clock(job.submitted_at),
        "started": clock(job.started_at),
        "ended": clock(job.ended_at),
        "elapsed": elapsed(job, now),
    }
    lines = labelled(told)
    if job.estimate is not None:
        lines += ["", "estimate", *(f"  {line}" for line in estimate_lines(job.estimate))]
        lines += [f"  {line}" for line in [gate_line(job)] if line]
    if job.attempts:
        lines += ["", "attempts", *map(_tried, job.attempts)]
    if job.happened:
        lines += ["", "happened"]
        newest = job.happened[-HAPPENED_SHOWN:]
        lines += [f"  … {len(job.happened) - len(newest)} earlier ones" for _ in job.happened[HAPPENED_SHOWN:][:1]]
        lines += [f"  {clock(one.at)}  {one.kind:<11}{one.text}".rstrip() for one in newest]
    return [*lines, *_result_part(job)]


def ended_lines(job: JobReport) -> list[str]:
    """How one ended that is over."""
    kind = f" ({job.failure})" if job.failure else ""
    how = {
        "job": job.name,
        "state": f"{job.state}{kind}{f': {job.reason}' * bool(job.reason)}",
        "elapsed": elapsed(job, 0.0),
        "checkpoint": _checkpoint(job),
        "log": _log(job),
    }
    return [*labelled(how), *result_lines(job)]


def result_lines(job: JobReport) -> list[str]:
    """How good it is by now."""
    held_out, before = job.result.get("held_out_loss"), job.result.get("held_out_loss_before")
    used = job.result.get("gpu_use")
    served = f"{job.name} on {', '.join(job.served)}" if job.served else ""
    return labelled(
        {
            "final loss": _figure(job.result.get("train_loss", job.result.get("loss"))),
            "held-out": "" if held_out is None else f"{_figure(held_out)}, {_figure(before)} before",
            "perplexity": "" if held_out is None else _perplexity(held_out),
            "steps": str(job.result.get("step", "")),
            "GPU busy": f"{used:.0%} of the time" if isinstance(used, int | float) else "",
            "served as": served,
        }
    )


def table(jobs: list[JobReport], now: float) -> list[str]:
    """One line a job, below their titles."""
    titles = ("job", "state", "model", "method", "node", "elapsed", "")
    rows = [titles, *(_row(job, now) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles) - 1)]
    plain = ("  ".join([*map(str.ljust, row[:-1], widths), row[-1]]) for row in rows)
    return [line.rstrip() for line in plain]


def elapsed(job: JobReport, now: float) -> str:
    """From its submission to its end, or until now."""
    return duration(max(0.0, (job.ended_at or now) - job.submitted_at)) if job.submitted_at else ""


def progress(job: JobReport) -> str:
    """Where a running job is, and in which retry."""
    if job.state != "running" or not job.progress.phase:
        return ""
    retry = f"retry {job.retries}, " if job.retries else ""
    return f"{retry}{_where(job.progress)}"


def clock(at: float | None) -> str:
    """In the time of this place."""
    return "" if not at else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


class JobChanges:
    """What is new about a job since it was last told, a line each."""

    def __init__(self) -> None:
        self._told: dict[str, object] = {}

    def lines(self, job: JobReport) -> Iterator[str]:
        """Each thing once."""
        if self._is_new("estimate", job.estimate) and job.estimate is not None:
            yield from estimate_lines(job.estimate)
        if self._is_new("gate", job.gate) and job.gate is not None:
            yield gate_line(job)
        if job.state == "running":
            if self._is_new("attempt", (job.attempt, job.node)):
                yield f"attempt {job.attempt} on {job.node}{self._why(job)}"
        elif not job.is_over and job.state != "waiting" and self._is_new("state", (job.state, job.reason)):
            yield f"job {job.name} is {job.state}{f': {job.reason}' if job.reason else ''}"

    def _is_new(self, what: str, value: object) -> bool:
        before = self._told.get(what)
        self._told[what] = value
        return value != before

    def _why(self, job: JobReport) -> str:
        tried = next((one for one in job.attempts if one.number == job.attempt), None)
        return "" if tried is None or not tried.why else f": {tried.why}"


def _result_part(job: JobReport) -> list[str]:
    lines = result_lines(job) if job.is_over else []
    return ["", "result", *(f"  {line}" for line in lines)] if lines else []


def _checkpoint(job: JobReport) -> str:
    """Where it was saved, not where it is: nodes remove it some time after the job's end."""
    if job.checkpoint is None:
        return ""
    nodes = ", ".join(job.checkpoint.nodes)
    return f"after step {job.checkpoint.step}" + f", saved on {nodes}" * bool(nodes)


def _log(job: JobReport) -> str:
    """Where it is, and how it is read; of a failure there may be more."""
    if job.log is None:
        return ""
    more = f"; why it failed: mesh jobs crash {job.name}" * any(one.failure for one in job.attempts)
    return f"of attempt {job.log.attempt}, on {job.log.node}: mesh jobs logs {job.name}{more}"


def _row(job: JobReport, now: float) -> tuple[str, ...]:
    last = progress(job) or (job.reason if job.state != "completed" else "")
    return (job.name, job.state, job.model, job.method, job.node, elapsed(job, now), last)


def _where(now: Progress) -> str:
    if not now.step:
        return PHASES.get(now.phase, now.phase)
    loss = "" if now.loss is None else f", loss {now.loss:.4f}"
    speed = "" if now.tokens_per_s is None else f", {now.tokens_per_s:.0f} tokens/s"
    if now.step >= now.steps:
        return f"step {now.step}/{now.steps}{loss}, {AFTER_STEPS.get(now.phase, 'about to be judged')}"
    left = "" if now.eta_s is None else f", {duration(now.eta_s)} left"
    return f"step {now.step}/{now.steps}{loss}{speed}{left}"


def _tried(one: Any) -> str:
    steps = f", step {one.step}/{one.steps}" if one.steps else ""
    kind = f" {one.failure}" if one.failure else ""
    why = f" ({one.why})" if one.why else ""
    reason = f": {one.reason}" if one.reason else ""
    return f"  {one.number}. on {one.node}{why}: {one.state}{kind}{steps}{reason}"


def _method(spec: TrainingSpec) -> str:
    adapter = "" if spec.method == "full_finetune" else f", rank {spec.lora.r}, alpha {spec.lora.alpha:g}"
    task = "" if spec.task == "finetune" else f", {spec.task}"
    return f"{spec.method}{adapter}{task}"


def _batch(spec: TrainingSpec) -> str:
    rows = f"{spec.micro_batch_size} rows of up to {spec.seq_len} tokens"
    more = f" × {spec.gradient_accumulation_steps} = {spec.effective_batch} a step"
    return rows + more * (spec.gradient_accumulation_steps > 1)


def _cost(found: EstimateReport) -> str:
    if found.usd is None:
        return "unknown: nobody knows what this node costs"
    between = f" ({_usd(found.usd_low)} to {_usd(found.usd_high)})" if found.usd_low is not None else ""
    rate = f", at {found.usd_per_second:.6f} USD a second" if found.usd_per_second is not None else ""
    return f"{_usd(found.usd)} USD{between}{rate}"


def _usd(amount: float | None) -> str:
    """Two places, or more where there would be nothing to see."""
    if amount is None:
        return "-"
    return f"{amount:.2f}" if amount >= 0.005 or not amount else f"{amount:.2g}"


def _lengths(p50: int | None, p95: int | None, longest: int | None) -> str:
    return f"{p50} tokens (half), {p95} (95 %), {longest} (longest)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _perplexity(loss: object) -> str:
    return f"{math.exp(min(loss, 50.0)):.2f}" if isinstance(loss, int | float) else ""
