"""ULIDs as the specification has them."""

from __future__ import annotations

import re

import pytest

from tiermesh.protocol.ulid import PATTERN, make_ulid


def test_the_example_of_the_specification() -> None:
    assert make_ulid(1469918176385, bytes(10)).startswith("01ARYZ6S41")


def test_they_sort_as_time_does_and_are_well_formed() -> None:
    made = [make_ulid(at, bytes([chance] * 10)) for at, chance in ((0, 255), (1, 0), (2**40, 7), (2**48 - 1, 255))]
    assert made == sorted(made)
    assert all(re.fullmatch(PATTERN, one) for one in made)
    assert made[-1] == "7" + "Z" * 25


def test_too_little_chance_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="10 bytes of chance, not 3"):
        make_ulid(0, b"abc")
