"""What the client of one sequence is told, event by event: text, calls of tools, token ids, logprobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tiermesh.kernel.inference.sequence import Choice, Finished, Text
from tiermesh.kernel.inference.tools.parser import Arguments, CallBegun, CallParser, Content, Piece

AnswerReason = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class CallPart:
    """A piece of a call. The first piece of each has `id` and `name`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Part:
    """What one event adds. `choices` are the tokens that it shows, `token_ids` all that were chosen."""

    content: str = ""
    calls: list[CallPart] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    reason: AnswerReason | None = None

    @property
    def empty(self) -> bool:
        """Whether it shows nothing."""
        return not (self.content or self.calls)


class Transcript:
    """Of one sequence. `one_call`: the answer is over with its first call."""

    def __init__(self, parser: CallParser | None, *, seed: int, one_call: bool, resumed: int) -> None:
        self._parser = parser
        self._seed = seed
        self._one_call = one_call
        self._tail = ""
        self.tokens = resumed
        """Tokens chosen, the resumed ones included."""

    def replay(self, text: str) -> None:
        """This was told already."""
        if self._parser is not None:
            self._parser.feed(text)

    def take(self, event: Text) -> Part | None:
        """None: it belongs to the last event, which is to come."""
        if not event.choices:
            self._tail += event.text
            return None
        self.tokens += len(event.choices)
        return self._part(self._read(event.text), event.choices, shown=event.choices)

    @property
    def over(self) -> bool:
        """Whether nothing that may come is wanted any more."""
        return self._one_call and self._parser is not None and self._parser.complete > 0

    def finish(self, event: Finished | None = None) -> Part:
        """The last part. None: the answer is over because the transcript is."""
        pieces = self._read(self._tail)
        if self._parser is not None:
            pieces += self._parser.finish()
        choices = () if event is None else event.choices
        self.tokens = self.tokens if event is None else event.completion_tokens
        part = self._part(pieces, choices, shown=())
        reason: AnswerReason = "stop" if event is None else event.reason
        called = self._parser is not None and self._parser.calls > 0
        part.reason = "tool_calls" if called and reason == "stop" else reason
        return part

    def _read(self, text: str) -> list[Piece]:
        if self._parser is None:
            return [Content(text)]
        return self._parser.feed(text)

    def _part(self, pieces: Iterable[Piece], chosen: Iterable[Choice], *, shown: Iterable[Choice]) -> Part:
        part = Part(token_ids=[choice.token for choice in chosen], choices=list(shown))
        for piece in pieces:
            match piece:
                case Content(text):
                    part.content += text
                case CallBegun(index, name):
                    part.calls.append(CallPart(index, call_id(self._seed, index), name))
                case Arguments(index, text) if part.calls and part.calls[-1].index == index:
                    part.calls[-1].arguments += text
                case Arguments(index, text):
                    part.calls.append(CallPart(index, arguments=text))
        return part


def call_id(seed: int, index: int) -> str:
    """The same for the same answer, wherever it is continued."""
    return "call_" + hashlib.blake2b(f"{seed}:call:{index}".encode(), digest_size=12).hexdigest()


def gathered(parts: Iterable[Part]) -> Part:
    """One part that says what all of them say; each call is whole."""
    whole = Part()
    calls: dict[int, CallPart] = {}
    for part in parts:
        whole.content += part.content
        whole.token_ids += part.token_ids
        whole.choices += part.choices
        whole.reason = part.reason or whole.reason
        for piece in part.calls:
            call = calls.setdefault(piece.index, CallPart(piece.index, piece.id, piece.name))
            call.arguments += piece.arguments
    whole.calls = [calls[index] for index in sorted(calls)]
    return whole
