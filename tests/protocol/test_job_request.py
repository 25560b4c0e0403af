"""What a submission must be like, in words that a person can use."""

from __future__ import annotations

from typing import Any

import pytest

from tiermesh.errors import InvalidInput
from tiermesh.protocol.jobs import TrainRequest
from tiermesh.protocol.validation import validated

GIVEN: dict[str, Any] = {"spec": {}, "data": {"text": "x"}}


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"name": "x/../y"}, "name", "name: a name has letters (a-z), digits, '.', '_', ':' and '-', begins with"),
        ({"name": "a\n"}, "name", "name: a name has letters"),
        ({"name": "n" * 101}, "name", "at most 100 characters"),
        ({"gates": {"max_gap": "banana"}}, "gates.max_gap", "gates.max_gap: must be a number of at least 0, or any"),
        ({"gates": {"max_final_loss": -1}}, "gates.max_final_loss", "must be a number of at least 0, or any"),
        ({"gates": {"max_final_loss": "2"}}, "gates.max_final_loss", "must be a number of at least 0, or any"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(more: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        validated(TrainRequest, GIVEN | more)
    assert said in str(refused.value)
    assert refused.value.param == param
    assert "literal" not in str(refused.value)


def test_what_is_not_said_is_left_to_the_policy() -> None:
    asked = validated(TrainRequest, GIVEN | {"gates": {"max_final_loss": None, "max_gap": "any"}})
    assert asked.gates.said() == {"max_gap": "any"}
