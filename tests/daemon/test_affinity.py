"""A conversation goes where it was before."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.daemon import affinity as affinity_module
from tiermesh.daemon.affinity import Affinity
from tiermesh.types import NodeId


def talk(*said: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in said]


def asked(affinity: Affinity, *said: str, node: str = "a", model: str = "m") -> NodeId | None:
    """Where it was before; it is answered by `node`."""
    prefix = affinity.look(model, talk(*said))
    affinity.note(prefix, NodeId(node))
    return prefix.node


def test_the_longest_known_beginning_counts() -> None:
    affinity = Affinity()
    assert asked(affinity, "1", node="a") is None
    assert asked(affinity, "1", "2", "3", node="b") == "a"
    assert asked(affinity, "1", "2", "3", "4", "5") == "b"
    assert asked(affinity, "1", "x") == "a"


def test_equal_first_messages_are_no_conversation() -> None:
    affinity = Affinity()
    asked(affinity, "1", node="b")
    assert asked(affinity, "1") is None


def test_other_models_and_other_words_are_other_conversations() -> None:
    affinity = Affinity()
    asked(affinity, "1", "2")
    assert asked(affinity, "1", "2", "3", model="n") is None
    assert asked(affinity, "2", "1", "3") is None


@pytest.mark.parametrize("messages", [None, [], "text", 3])
def test_what_is_no_conversation_is_nowhere(messages: object) -> None:
    affinity = Affinity()
    prefix = affinity.look("m", messages)
    affinity.note(prefix, NodeId("a"))
    assert (prefix.node, len(affinity._nodes)) == (None, 0)


def test_the_longest_unused_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity_module, "KEPT", 2)
    affinity = Affinity()
    for word in ("1", "2", "3"):
        asked(affinity, word)
    assert asked(affinity, "1", "more") is None
    assert asked(affinity, "3", "more") == "a"
