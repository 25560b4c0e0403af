"""From tokens to text as it may be shown: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a decoder puts where bytes are missing."""


MAX_UNFINISHED_TOKENS = 32
"""A character has at most 4 bytes; tokens that still make none are garbage, and are shown as such."""


class Detokenizer:
    """Feed it tokens one by one; the texts that come back add up to the text of all of them.

    Only a window is decoded again for each token: from where the last shown piece began, because a decoder may treat
    the first token of a text differently (a leading space, joined bytes).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0
        """How many tokens of the window have been shown."""

    def feed(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._window.append(token)
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        unfinished = after.endswith(REPLACEMENT) and len(self._window) - self._shown < MAX_UNFINISHED_TOKENS
        if unfinished or len(after) <= len(before):
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return after[len(before) :]

    def flush(self) -> str:
        """What remains at the end, less the bytes of a character that never was completed."""
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        self._window, self._shown = [], 0
        return after[len(before) :].rstrip(REPLACEMENT)


class StopMatcher:
    """Holds text back while it may still become a stop string; a stop string itself is never let through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string was met (then nothing more must be fed)."""
        self._held += text
        # The one that ends first counts, as it would if the text had come letter by letter.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)[1]], ""
            return shown, True
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        shown, self._held = self._held, ""
        return shown


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
