"""Text is shown in whole characters and never shows a part of a stop string, however the tokens cut it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.kernel.inference.tokens import REPLACEMENT, Detokenizer, StopMatcher


def decode_bytes(tokens: Sequence[bytes]) -> str:
    return b"".join(tokens).decode(errors="replace")


def detokenizer() -> Detokenizer:
    return Detokenizer(decode_bytes)  # type: ignore[arg-type]  # tokens are bytes here


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT)), st.lists(st.integers(0))
)
def test_whole_characters_only_and_nothing_lost(text: str, cuts: list[int]) -> None:
    stream = detokenizer()
    shown = [stream.feed(piece) for piece in pieces(text.encode(), cuts)]  # type: ignore[arg-type]
    assert not any(REPLACEMENT in piece for piece in shown)
    assert "".join(shown) + stream.flush() == text


@given(st.binary(max_size=24), st.lists(st.integers(0)))
def test_bytes_that_are_no_text_are_shown_as_a_whole_decoding_would(data: bytes, cuts: list[int]) -> None:
    stream = detokenizer()
    shown = "".join(stream.feed(piece) for piece in pieces(data, cuts)) + stream.flush()  # type: ignore[arg-type]
    assert shown.rstrip(REPLACEMENT) == data.decode(errors="replace").rstrip(REPLACEMENT)


def test_an_unfinished_character_is_dropped_at_the_end() -> None:
    stream = detokenizer()
    assert stream.feed(b"a") == "a"  # type: ignore[arg-type]
    assert stream.feed("é".encode()[:1]) == ""  # type: ignore[arg-type]
    assert stream.flush() == ""


def test_garbage_without_end_is_not_held_for_ever() -> None:
    stream = detokenizer()
    assert any(stream.feed(b"\xff") for _ in range(100))  # type: ignore[arg-type]


def stop_oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: the first stop string that is complete ends the text before it began."""
    for end in range(1, len(text) + 1):
        matched = [stop for stop in stops if text[:end].endswith(stop)]
        if matched:
            return text[: end - len(max(matched, key=len))], True
    return text, False


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30)),
)
def test_a_stop_string_ends_the_text_wherever_tokens_cut_it(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, stopped = StopMatcher(stops), "", False
    for piece in pieces(text.encode(), cuts):
        more, stopped = matcher.feed(piece.decode())
        shown += more
        assert stop_oracle(text, stops)[0].startswith(shown)
        if stopped:
            break
    else:
        shown += matcher.flush()
    assert (shown, stopped) == stop_oracle(text, stops)


@pytest.mark.parametrize(
    ("fed", "shown"),
    [("hello", "hello"), ("hello #", "hello "), ("hello ##", "hello "), ("hello #x", "hello #x")],
)
def test_only_what_may_become_a_stop_string_is_held_back(fed: str, shown: str) -> None:
    assert StopMatcher(["###"]).feed(fed) == (shown, False)
