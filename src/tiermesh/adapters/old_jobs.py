"""Jobs as a version kept them that knew of no other node: a table `job`, read as the records that they have become."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId
from tiermesh.types import NO_BALLOT, NodeId

_COLUMNS = (
    *("id", "name", "spec", "data", "eval_data", "state", "attempt", "submitted_at", "started_at", "ended_at"),
    *("reason", "failure", "result"),
)
_ROWS = f"SELECT {', '.join(_COLUMNS)} FROM job"  # noqa: S608 - our own names


def old_jobs(db: sqlite3.Connection, me: NodeId) -> list[Job]:
    """All that are there, each with the one attempt that this node made. Raises `sqlite3.Error`, and ValueError."""
    return [_record(dict(zip(_COLUMNS, row, strict=True)), me) for row in db.execute(_ROWS)]


def _record(row: Mapping[str, Any], me: NodeId) -> Job:
    plain = {name: json.loads(row[name]) for name in ("spec", "data", "result")}
    held_out = json.loads(row["eval_data"]) if row["eval_data"] else None
    asked = Asked(
        name=row["name"],
        spec=plain["spec"],
        data=Dataset(**plain["data"]),
        eval_data=Dataset(**held_out) if held_out else None,
        submitted_at=row["submitted_at"],
    )
    course = Course(state=row["state"], reason=row["reason"], failure=row["failure"], ended_at=row["ended_at"])
    begun = () if row["started_at"] is None else (_old_attempt(row, plain, me),)
    return Job(id=JobId(row["id"]), asked=asked, course=course, attempts=begun, holders=(me,))


def _old_attempt(row: Mapping[str, Any], plain: Mapping[str, Any], me: NodeId) -> Attempt:
    ended = {"completed": "completed", "failed": "failed"}
    told = Told(
        seq=1,
        state=ended.get(row["state"], "stopped"),  # type: ignore[arg-type]
        failure=row["failure"],
        reason=row["reason"],
        result=plain["result"],
        holders=(me,) if row["state"] == "completed" else (),
    )
    at = row["started_at"]
    return Attempt(number=row["attempt"], ballot=NO_BALLOT, node=me, spec=plain["spec"], ordered_at=at, told=told)
