"""The wire: everything that is said comes back equal, unknown fields are ignored, garbage is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core.stage import ME, A, B, member, status

from tiermesh.core.codec import DEEPEST, LARGEST_INTEGER, LONGEST_TEXT
from tiermesh.core.messages import (
    PROTOCOL,
    PROTOCOL_MINIMUM,
    Ack,
    Beat,
    Bye,
    Claim,
    Hello,
    Message,
    Update,
    Uplink,
    decode,
    encode,
    policy_from_dict,
    policy_to_dict,
    status_from_dict,
    status_to_dict,
    view_from_dict,
    view_to_dict,
)
from tiermesh.types import Ballot, EngineInfo, Gpu, Hardware, Load, Model, Policy, Status, View

KINDS: tuple[type[Message], ...] = get_args(Message)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=12),
    int: st.integers(-LARGEST_INTEGER, LARGEST_INTEGER),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    object: JSON,
}


def anything(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that occurs in messages."""
    if isinstance(kind, NewType):
        return anything(kind.__supertype__)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return st.builds(kind, **{each.name: anything(hints[each.name]) for each in fields(kind)})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (UnionType, Union):
        return st.one_of(*(st.none() if each is type(None) else anything(each) for each in arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(anything(arguments[0]), max_size=2).map(tuple)
        return st.tuples(*map(anything, arguments))
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=8), anything(arguments[1]), max_size=2)
    return SCALARS[kind]


def through_json(message: Message) -> Message:
    return decode(json.loads(json.dumps(encode(message))))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_equal(kind: type[Message]) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(anything(kind))
    def check(message: Message) -> None:
        assert through_json(message) == message

    check()


FULL_STATUS = Status(
    name="büro",
    addresses=tuple(map(str, ("10.0.0.1:8000", "[fe80::1]:8000"))),  # type: ignore[arg-type]
    state="draining",
    tier=0,
    models=(Model("m", "sha", 2, "kernel", "warm"), Model("n", "sha", 1, "kernel", "loading", 0.5)),
    engines=(EngineInfo("kernel", "kernel", "ready", can_continue=True),),
    hardware=Hardware("cpu", 8, 2**34, None, "Linux", "x86_64", (Gpu("g", 2**33), Gpu("h"))),
    load=Load(1, 4, 0),
    eligible=False,
    latency_ms=0.0,
    version="0.1.0",
)


def test_a_full_status_comes_back_equal() -> None:
    assert status_from_dict(json.loads(json.dumps(status_to_dict(FULL_STATUS)))) == FULL_STATUS
    assert through_json(Beat(Uplink(1), 2, (Ballot(3, A), 4), status=FULL_STATUS)) == Beat(
        Uplink(1), 2, (Ballot(3, A), 4), status=FULL_STATUS
    )


def test_a_view_and_a_policy_come_back_equal() -> None:
    policy = Policy(Ballot(1, A), 2, {"routing": {"prefer_local": True, "aliases": [1, None, 2.5]}})
    view = View(Ballot(3, A), 4, A, {A: member(A, 1), ME: member(ME, 2)}, policy)
    assert view_from_dict(json.loads(json.dumps(view_to_dict(view)))) == view
    assert policy_from_dict(json.loads(json.dumps(policy_to_dict(policy)))) == policy


def test_fields_that_hold_their_default_are_left_out() -> None:
    assert encode(Beat(Uplink(1), 2, (Ballot(3, A), 4))) == {
        "type": "beat",
        "uplink": 1,
        "seq": 2,
        "holds": [{"term": 3, "node_id": "a"}, 4],
    }
    assert encode(Bye()) == {"type": "bye"}
    small = len(json.dumps(encode(Update(Ballot(3, A), 5, (Ballot(3, A), 4), (member(B, 2),)))))
    assert small < 400, "one member's change"


def test_a_neighbouring_version_is_understood() -> None:
    data = encode(Hello((), (0, 1, 2, A)))
    assert decode({**data, "invented_later": {"x": [1]}}) == Hello((), (0, 1, 2, A))
    assert PROTOCOL_MINIMUM <= PROTOCOL


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "no such message"),
        ([], "no such message"),
        ({}, "no such message"),
        ({"type": 7}, "no such message"),
        ({"type": "shout"}, "no such message"),
        ({"type": "ack"}, "lacks uplink"),
        ({"type": "ack", "uplink": "1", "seq": 1, "ballot": {}}, "uplink: an integer"),
        ({"type": "ack", "uplink": True, "seq": 1, "ballot": {}}, "uplink: an integer"),
        ({"type": "ack", "uplink": 10**30, "seq": 1, "ballot": {}}, "uplink: an integer"),
        ({"type": "ack", "uplink": 1, "seq": 1, "ballot": {"term": 1}}, "ballot: Ballot lacks node_id"),
        ({"type": "ack", "uplink": 1, "seq": 1, "ballot": [1, "a"]}, "ballot: an object"),
        ({"type": "hello", "addresses": "x:1", "key": [0, 1, 2, "a"]}, "addresses: a list"),
        ({"type": "hello", "addresses": [1], "key": [0, 1, 2, "a"]}, "addresses: text"),
        ({"type": "hello", "addresses": [], "key": [0, 1, 2]}, "key: 4 values"),
        ({"type": "hello", "addresses": [], "key": [0, 1, 2, "a"], "answer": 1}, "answer: true or false"),
        ({"type": "taken", "session": "x" * (LONGEST_TEXT + 1)}, "session: text of at most"),
        ({"type": "probe", "ballot": {"term": 1, "node_id": "a"}, "size": 1, "reign_s": float("nan"), "addresses": []},
         "reign_s: a finite number"),
    ],
)  # fmt: skip
def test_garbage_is_refused_by_name(data: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode(data)


def test_a_wrong_tier_state_or_body_is_refused() -> None:
    good = status_to_dict(status(A))
    wrongs: tuple[dict[str, object], ...] = (
        {"tier": 3},
        {"tier": True},
        {"state": "asleep"},
        {"load": {"active": 1.5}},
        {"models": [{}]},
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            status_from_dict({**good, **wrong})
    with pytest.raises(ValueError, match="body"):
        policy_from_dict({"body": ["not", "an", "object"]})


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from([kind.__name__.lower() for kind in KINDS]))
def test_no_json_does_more_than_raise_value_error(data: Any, tag: str) -> None:
    if isinstance(data, dict):
        data = {**data, "type": tag}
    try:
        message = decode(data)
    except ValueError:
        return
    assert isinstance(message, KINDS)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_message_with_one_part_replaced_is_understood_or_refused(data: st.DataObject) -> None:
    message = encode(
        Beat(Uplink(1), 2, (Ballot(3, A), 4), status=FULL_STATUS, policy=Policy(Ballot(1, A), 1, {"x": 1}))
    )
    broken = _with_one_part_replaced(message, data)
    with suppress(ValueError):
        decode(broken)


def _with_one_part_replaced(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _with_one_part_replaced(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], _with_one_part_replaced(value[index], data), *value[index + 1 :]]
    return data.draw(JSON)


def test_an_acknowledgement_is_small() -> None:
    assert len(json.dumps(encode(Ack(Uplink(1), 1000, Ballot(10**9, B))))) < 120


def test_text_that_nobody_can_write_down_is_refused() -> None:
    claim = encode(Claim(Ballot(5, A)))
    with pytest.raises(ValueError, match="text"):
        decode({**claim, "ballot": {"term": 5, "node_id": "\ud800"}})
    assert decode({**claim, "ballot": {"term": 5, "node_id": "é\U0001f600"}})


def test_a_policy_nested_too_deeply_is_refused() -> None:
    def nested(levels: int) -> object:
        return {"x": nested(levels - 1)} if levels else 1

    assert policy_from_dict({"body": nested(DEEPEST)})
    with pytest.raises(ValueError, match="levels"):
        policy_from_dict({"body": nested(DEEPEST + 1)})
