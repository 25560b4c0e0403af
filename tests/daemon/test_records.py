"""Another node's record names files here: what is no id and no digest is refused before it is used."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.core.attempts import Attempt
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId, job_to_dict
from tiermesh.daemon.api.attempts import _submission
from tiermesh.daemon.records import record_of
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import NO_BALLOT, NodeId

DATA = Dataset("0" * 64, "faq.jsonl", 1)
JOB = Job(
    id=JobId(make_ulid(1, b"0123456789")),
    asked=Asked(name="faq", spec={}, data=DATA),
    course=Course(state="completed"),
    attempts=(Attempt(number=1, ballot=NO_BALLOT, node=NodeId("a" * 32), spec={}),),
    approved=7,
)


def test_a_record_is_read_as_it_was_sent() -> None:
    assert record_of(job_to_dict(JOB)) == JOB


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "../../../../home/somebody/notes"},
        {"id": f"{JOB.id}\n"},
        {"id": ""},
        {"asked": {"name": "faq", "spec": {}, "data": {"sha256": "../../passwd", "name": "x"}}},
        {"attempts": [{"number": -1, "ballot": {"term": 1, "node_id": "a"}, "node": "a", "spec": {}}]},
    ],
)
def test_what_could_be_a_path_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        record_of(job_to_dict(JOB) | wrong)


def test_a_submission_is_a_request_and_nothing_that_became_of_one() -> None:
    taken = _submission(JOB)
    assert (taken.id, taken.asked) == (JOB.id, JOB.asked)
    assert (taken.state, taken.attempts, taken.approved) == ("estimating", (), -1)
