"""Calls in an answer, found while it is being written.

What might begin a call is held back until it is one or can't be. Whatever turns out to be no call of a known tool is
text, and is shown as it was written.

```
text  --start tag, or the brace that begins a Llama's answer-->  tagged  --brace-->  call
call  --closing brace-->  tagged       call  --no call of a known tool-->  text
tagged  --end tag, or anything else-->  text
```
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from tiermesh.kernel.inference.tokens import overlap
from tiermesh.kernel.inference.tools.family import Family
from tiermesh.kernel.inference.tools.members import ObjectReader

PYTHON_TAG = "<|python_tag|>"
"""Llama may put it before a call; a special token, so it is seen only where a tokenizer does not say so."""
ARGUMENTS_KEYS = ("arguments", "parameters")
"""Models write their family's key, and now and then the other one."""


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of this tool; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of a call's arguments, which are JSON when put together."""

    index: int
    text: str


Piece = Content | CallBegun | Arguments


class CallParser:
    """Feed it an answer in pieces of any size: the result does not depend on where it was cut."""

    def __init__(self, family: Family, names: Container[str]) -> None:
        self._family = family
        self._names = names
        self._state: Literal["text", "tagged", "call"] = "text"
        self._held = ""
        """Read, and neither shown nor understood yet."""
        self._claimed = ""
        """Understood as the beginning of calls; text after all, should no call come of it."""
        self._at_start = True
        """Nothing but white space has come since the answer began, or since the last call."""
        self._begun = 0
        self._reader = ObjectReader()
        self._sent: int | None = None
        """Characters of the current call's arguments that were told; None: not even its name was."""
        self._pieces: list[Piece] = []
        self.complete = 0
        """Calls that were read to their end."""

    @property
    def calls(self) -> int:
        """Calls that were told."""
        return self._begun

    def feed(self, text: str) -> list[Piece]:
        """What this piece completes."""
        self._held += text
        steps = {"text": self._read_text, "tagged": self._read_tagged, "call": self._read_call}
        while self._held and steps[self._state]():
            pass
        return self._told()

    def finish(self) -> list[Piece]:
        """The answer ends here."""
        between_calls = self._state == "tagged" and not self._claimed
        if self._sent is None and not between_calls:
            rest = self._claimed + self._held
            self._show("" if self._begun and not rest.strip() else rest)
        self._claimed = self._held = ""
        return self._told()

    def _told(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(Content(text))
            self._at_start = False

    def _read_text(self) -> bool:
        if self._begun and self._at_start:
            self._held = self._held.lstrip()
        return self._find_tag() if self._family.start_tag else self._find_brace()

    def _find_tag(self) -> bool:
        tag = self._family.start_tag
        before, found, after = self._held.partition(tag)
        if found:
            shown = before.rstrip()
            self._show(shown)
            self._held, self._claimed, self._state = after, before[len(shown) :] + tag, "tagged"
            return True
        # White space is held too: what stands before a call is its layout.
        shown = self._held[: len(self._held) - overlap(self._held, tag)].rstrip()
        self._held = self._held[len(shown) :]
        self._show(shown)
        return False

    def _find_brace(self) -> bool:
        """Without a tag only the answer's beginning may be a call."""
        text = self._held.lstrip()
        if self._at_start and (text.startswith(("{", PYTHON_TAG)) or PYTHON_TAG.startswith(text)):
            if text.startswith(("{", PYTHON_TAG)):
                self._claimed = self._held[: len(self._held) - len(text.removeprefix(PYTHON_TAG))]
                self._held, self._state = text.removeprefix(PYTHON_TAG), "tagged"
                return True
            return False
        self._show(self._held)
        self._held = ""
        return False

    def _read_tagged(self) -> bool:
        """White space and whatever separates calls is skipped."""
        skipped = len(self._held) - len(self._held.lstrip(" \t\r\n[],;"))
        rest, end = self._held[skipped:], self._family.end_tag
        if rest.startswith("{"):
            self._claimed += self._held[:skipped]
            self._held, self._state = rest, "call"
            self._reader, self._sent = ObjectReader(), None
            return True
        if end and rest.startswith(end):
            self._held, self._claimed, self._state = rest.removeprefix(end), "", "text"
            return True
        return not end.startswith(rest) and self._give_up()

    def _give_up(self) -> bool:
        """No call of a known tool: what was taken for one is text, from here on too."""
        self._show(self._claimed)
        self._claimed, self._sent, self._state = "", None, "text"
        return True

    def _read_call(self) -> bool:
        read = len(self._reader.raw)
        self._held = self._reader.feed(self._held)
        self._claimed += self._reader.raw[read:]
        if self._sent is None and self._reader.complete("name"):
            self._begin_call()
        if self._sent is not None:
            self._tell_arguments()
        if self._reader.done and self._sent is not None:
            return self._end_call()
        if self._reader.done or self._reader.broken or (self._reader.complete("name") and self._sent is None):
            return self._give_up()
        return False

    def _begin_call(self) -> None:
        name = _decoded(self._reader.values["name"])
        if isinstance(name, str) and name in self._names:
            self._pieces.append(CallBegun(self._begun, name))
            self._begun += 1
            self._sent = 0
            self._claimed = ""

    def _tell_arguments(self) -> None:
        assert self._sent is not None, "only of a call that was told"
        self._claimed = ""
        written = self._arguments()
        if len(written) > self._sent:
            self._pieces.append(Arguments(self._begun - 1, written[self._sent :]))
            self._sent = len(written)

    def _arguments(self) -> str:
        """As far as they are known. Some models write them as a string that holds JSON."""
        for key in ARGUMENTS_KEYS:
            written = self._reader.values.get(key, "")
            if written.startswith("{"):
                return written
            if self._reader.complete(key) and (decoded := _decoded(written)) is not None:
                return decoded if isinstance(decoded, str) else written
        return "{}" if self._reader.done else ""

    def _end_call(self) -> bool:
        self.complete += 1
        self._sent, self._claimed, self._state, self._at_start = None, "", "tagged", True
        return True


def _decoded(raw: str) -> object:
    try:
        return json.loads(raw, strict=False)
    except ValueError:
        return None
