"""JSON on the way of every prompt reads and writes what the standard library does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.protocol import quick_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_what_json_writes_is_read_alike(value: object) -> None:
    assert quick_json.read(json.dumps(value).encode()) == value


@given(PLAIN)
def test_what_is_written_json_reads_alike(value: object) -> None:
    assert json.loads(quick_json.encode(value)) == value


@pytest.mark.parametrize("text", [b"", b"{", b"[1,]", b"NaN", b'"\xff"', b'"\\ud800"', b"\xef\xbb\xbf{}", b"1" * 5000])
def test_what_is_refused_is_the_callers_to_read_otherwise(text: bytes) -> None:
    with pytest.raises(ValueError):
        quick_json.decode(text)


def test_half_a_surrogate_pair_is_read_and_written_all_the_same() -> None:
    read = quick_json.read(b'{"content": "\\ud83d"}')
    assert read == {"content": "\ud83d"}
    assert json.loads(quick_json.encode(read)) == read


def test_whole_numbers_keep_all_their_digits() -> None:
    assert quick_json.decode(b'{"seed": 123456789012345678901234567890}') == {"seed": 123456789012345678901234567890}


def test_a_nest_without_end_is_too_deep() -> None:
    with pytest.raises(RecursionError):
        quick_json.read(b"[" * 100_000)


def test_equal_values_have_one_canonical_form() -> None:
    one, other = {"role": "user", "content": "x"}, {"content": "x", "role": "user"}
    assert quick_json.canonical(one) == quick_json.canonical(other)
    assert quick_json.canonical({"b": "\ud83d", "a": 1}) == quick_json.canonical({"a": 1, "b": "\ud83d"})
