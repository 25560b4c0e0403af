"""What is told of an attempt: from what its worker says to what the coordinator hears, and back from the wire."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from tiermesh.adapters.trainer import Ending
from tiermesh.core.attempts import PREPARING, AttemptId, Told
from tiermesh.core.codec import decode_value, encode_value
from tiermesh.core.jobs import JobId, clip
from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.job_orders import AttemptKey, AttemptTold
from tiermesh.protocol.training_events import Failed, StepDone
from tiermesh.types import Ballot, NodeId

Key = tuple[JobId, AttemptId]


def key_of(key: AttemptKey) -> Key:
    """As core has it."""
    return JobId(key.job), (key.attempt, ballot_of(key.made))


def ballot_of(told: BallotReport) -> Ballot:
    """As core has it."""
    return Ballot(told.term, NodeId(told.node_id))


def ballot_told(ballot: Ballot) -> BallotReport:
    """For the wire."""
    return BallotReport(term=ballot.term, node_id=ballot.node_id)


def wire_of(key: Key, told: Told) -> AttemptTold:
    """For the wire."""
    job, (number, made) = key
    encoded = encode_value(told)
    assert isinstance(encoded, dict)
    return AttemptTold(job=job, attempt=number, made=ballot_told(made), told=encoded)


def told_of(said: AttemptTold) -> Told:
    """As core has it. Raises ValueError."""
    told: Told = decode_value(Told, said.told)
    return told


def next_told(told: Told, **facts: Any) -> Told:
    """After something more is known. A reason is cut to what travels: a worker's last words may be a page."""
    found = replace(told, seq=later(told.seq), **facts)
    return replace(found, reason=clip(found.reason))


def later(seq: int) -> int:
    """Rises over restarts as well."""
    return max(seq + 1, int(time.time() * 1000))


def after_step(told: Told, event: StepDone) -> Told:
    """After a step of the run."""
    return next_told(
        told,
        phase="train",
        step=event.step,
        steps=event.steps,
        loss=event.loss,
        tokens_per_s=event.tokens_per_s,
        eta_s=event.eta_s,
    )


def after_end(told: Told, ending: Ending) -> Told:
    """A worker that was killed by somebody may go on; one that crashed would crash again. A full disk is this node's
    and not the job's: it can't have the job for now, as one that had refused it."""
    reached = ending.micro_batch_size
    match ending.how, ending.last:
        case "failed", Failed(kind="disk_full") as last:
            return next_told(told, state="stopped", phase=PREPARING, reason=last.message)
        case "failed", Failed() as last:
            advice = f". {last.advice}" if last.advice else ""
            reason = f"{last.message}{advice}"
            return next_told(told, state="failed", failure=last.kind, reason=reason, micro_batch_size=reached)
        case (("stopped" | "killed"), _):
            return next_told(told, state="stopped", reason=ending.reason)
        case "out_of_memory", _:
            return next_told(
                told, state="failed", failure="out_of_memory", reason=ending.reason, micro_batch_size=reached
            )
        case _:
            return next_told(told, state="failed", failure="unexplained", reason=ending.reason)
