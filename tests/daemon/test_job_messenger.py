"""What another node's answer means for a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from tiermesh.adapters.peer_requests import _refusal
from tiermesh.core.job_effects import Shortage
from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.daemon.job_messenger import TYPED, Messenger, refusal_of
from tiermesh.daemon.record_mail import RecordMail
from tiermesh.errors import TooLarge
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import Member, NodeId, SessionId, Status, View

NODE = NodeId("b" * 32)
SPEC = {"model_name": "tiny", "dataset_path": "faq.jsonl"}


def job(second: int = 1) -> Job:
    made = make_ulid(second * 1000, b"0123456789")
    return Job(id=JobId(made), asked=Asked(name=f"faq-{second}", spec=SPEC, data=Dataset("0" * 64, "faq.jsonl")))


def said(kind: str | None, message: str = "so and so") -> object:
    return {"error": {"type": kind, "message": message}} if kind else "<html>proxy</html>"


ANSWERS: list[tuple[str, int, str | None, bool]] = [
    ("the spec is wrong", 400, "invalid_spec", True),
    ("the data is", 400, "data_unusable", True),
    ("this node can't", 409, "job_refused", False),
    ("not now", 409, "slot_taken", False),
    ("somebody else leads", 409, "stale_order", False),
    ("no such route in its version", 404, "not_found", False),
    ("it reads the question otherwise", 400, "invalid_request", False),
    ("the record is larger than it reads", 413, "body_too_large", False),
    ("a kind of a later version", 422, "brand_new", False),
    ("it knows another job of that id", 409, "job_exists", False),
    ("something in between answers", 403, None, False),
    ("it broke", 500, "internal", False),
]


@pytest.mark.parametrize(("status", "kind", "for_good"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_only_what_is_wrong_with_the_job_itself_ends_it(status: int, kind: str | None, *, for_good: bool) -> None:
    refusal = refusal_of(_refusal(status, said(kind), TYPED))
    assert refusal.for_good == for_good
    assert refusal.reason in ("so and so", f"HTTP {status}")


def test_an_answer_that_can_not_be_read_is_that_nodes_affair() -> None:
    assert not refusal_of(ValueError("an integer was expected")).for_good


class Peer:
    """One other node, which answers as it is told to."""

    def __init__(self, answer: Mapping[str, object]) -> None:
        self.answer = answer
        self.asked: list[Mapping[str, Any]] = []

    async def ask(self, node: NodeId, _: object, path: str, body: Mapping[str, Any], **__: object) -> object:
        self.asked.append(body)
        return self.answer

    def messenger(self) -> Messenger:
        me, unused = NodeId("a" * 32), cast(Any, None)
        member = Member(NODE, SessionId("1"), Status("node-b", ()), 1)
        view = View(members={NODE: member})
        return Messenger(
            me=me, peers=cast(Any, self), view=lambda: view, policy=unused, take=unused, stop=unused, estimate=unused
        )


async def test_a_node_that_is_too_small_says_by_how_much() -> None:
    peer = Peer({"too_large": {"reason": "it needs more", "needs_bytes": 9, "has_bytes": 7}})
    with pytest.raises(TooLarge, match="it needs more") as raised:
        await peer.messenger().estimate(job(), NODE)
    assert refusal_of(raised.value).shortage == Shortage(9, 7)
    assert not refusal_of(raised.value).for_good


async def test_a_record_that_a_node_can_not_read_holds_up_no_other() -> None:
    good, odd = job(1), job(2)
    copied: list[str] = []
    mail = RecordMail(Peer({"unread": [odd.id]}).messenger(), lambda job, node: copied.append(job.id))
    assert mail.post(odd, NODE)
    assert not mail.post(good, NODE)
    await mail.send(NODE)
    assert copied == [good.id]
