"""What a client has been told of a streamed answer, so that another candidate can go on with it. Pure.

A stream comes from one source after another; the client sees one. Of an engine that can continue, every chunk carries
the token ids of what it shows: they are kept here, and leave the chunk unless the client asked for them. The first
source's chunks are otherwise passed on as they came, cut by a pattern and not parsed. What comes from a later source
is parsed and put into the first one's identity.

What can be asked of a later source, in this order:

    what the client has       asked of whom                      with
    nothing but the role      who has the same model             the request as it was
    ids of all it was shown   who has the same digest, and can   `resume_token_ids`
    text, and no call         any model, if the client allows    what was said, if anything, and a request to go on
    the finish reason         who has the same digest, and can   `resume_token_ids`, for the usage alone
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from tiermesh.daemon.sse import DONE, Finish, data_of, error_in, event, failure
from tiermesh.errors import EngineFailed

MAX_IDS = 1 << 20
"""Tokens kept of one answer; several times the longest context in use."""

MAX_TEXT = 4 << 20
"""Characters kept of one answer that may go on at another model; as much as one event may hold."""

MAX_FIRST_BYTES = 64 * 1024
"""Of the first piece, to learn the stream's identity from."""

GO_ON = "Your last message was cut off. Go on exactly where it ends, and repeat nothing of it."

SWITCH = "allow_model_switch"
"""The field of a request that is for us alone: another model may go on where its own can't."""

IDS = frozenset({"return_token_ids", "resume_token_ids"})
"""Fields that speak of one model's tokens."""

LIMITS = frozenset({"max_tokens", "max_completion_tokens"})

SHAPES = frozenset(
    {
        "response_format",
        "grammar",
        "json_schema",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
    }
)
"""Fields that give an answer its shape, here and in engines. Another model would begin it anew: two halves of two JSON
texts are none."""

Way = Literal["anew", "ids", "text", "usage"]
"""How the next source is to be asked."""

# A quote inside a JSON string is escaped, so these match between values only.
_IDS = re.compile(rb',\s?"token_ids":\s?\[([\d, ]*)\]')
_SHOWS_NOTHING = re.compile(rb'"delta":\s?\{\},\s?"logprobs":\s?null,\s?"finish_reason":\s?null')
_USAGE = re.compile(rb'"usage" ?: ?\{')
_DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)


class Told:
    """One streamed answer, as its client knows it. `begin` comes before the first piece of each source."""

    def __init__(self, body: Mapping[str, object], *, may_switch: bool) -> None:
        """`body` is the client's own request."""
        self.done = False
        """Has the client got the end of the stream?"""
        self.ids: list[int] = []
        """Of all that it was shown, those that its own request began with left out."""
        self._asked = body
        self._body = {key: value for key, value in body.items() if key != SWITCH}
        self._may_switch = may_switch
        options = body.get("stream_options")
        self._needs_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self._ids_wanted = bool(body.get("return_token_ids"))
        n = body.get("n")
        self.choices = n if isinstance(n, int) and n > 1 else 1
        """Answers that the stream is to carry."""
        self._finish = Finish(self.choices)
        self._shaped = any(_shapes(name, body.get(name)) for name in SHAPES)
        self._text: list[str] = []
        self._text_size = 0
        self._called = False
        self._first: bytes | None = None
        self._shown: bool | None = None
        """Was anything more than a role shown? None: look into the first piece, there was no other."""
        self._identity: dict[str, Any] = {}
        self._way: Way | None = None
        self._traced = False
        """Did the ids of everything come that was shown?"""
        self._moved = False
        self._uncounted = 0
        """Tokens shown by sources of other models; the last source does not count them."""

    @property
    def complete(self) -> bool:
        """Is nothing missing but the end itself?"""
        return self._finish.reached and not self._needs_usage

    def begin(self, way: Way, *, traced: bool) -> None:
        """The next source was asked this way. `traced`: its chunks should carry token ids."""
        self._moved = self._way is not None
        self._way, self._traced = way, traced
        if self._moved and not self._identity and self._first is not None:
            self._identity = _identity(self._first)
        if way == "text":
            self._body = self.request("text")
            self._uncounted += len(self.ids)
            self.ids = []

    def ways(self) -> tuple[Way, ...]:
        """How another source may be asked, best first; none when the stream can't go on."""
        if self._finish.reached:
            return ("usage",) if self._traced and self.ids else ()
        ways: list[Way] = []
        if self._has_shown_nothing():
            ways.append("anew")
        elif self._traced and 0 < len(self.ids) <= MAX_IDS:
            ways.append("ids")
        if self._may_switch and self._is_plain_text():
            ways.append("text")
        return tuple(ways)

    def request(self, way: Way) -> dict[str, object]:
        """The client's request, changed so that the next source does what is wanted of it."""
        given = self._body.get("resume_token_ids")
        ids = [*(given if isinstance(given, list) else ()), *self.ids]
        match way:
            case "anew":
                return dict(self._body)
            case "ids":
                return {**self._body, "resume_token_ids": ids}
            case "usage":  # all but the token that ended it; when so many are allowed, nothing more is computed
                body = {key: value for key, value in self._body.items() if key not in LIMITS}
                return {**body, "resume_token_ids": ids[:-1], "max_tokens": max(1, len(ids) - 1)}
            case "text":
                body = {key: self._left(key, value) for key, value in self._body.items() if key not in IDS}
                if not self._text_size:
                    return body
                messages = self._asked.get("messages")
                said = {"role": "assistant", "content": "".join(self._text)}
                asked = [*(messages if isinstance(messages, list) else ()), said, {"role": "user", "content": GO_ON}]
                return {**body, "messages": asked}

    def pass_on(self, piece: bytes) -> bytes:
        """What the client gets of a piece that ends where an event ends; may be empty.

        Raises `EngineFailed` for an error in the middle of a stream, and for what can't be read.
        """
        if b'"error"' in piece:
            _refuse_errors(piece)
        if self._moved:
            return self._rebuilt(piece)
        self._follow(piece)
        return self._stripped(piece) if self._traced else piece

    def end(self) -> bytes:
        """The end of the stream, if the client has not got it."""
        missing, self.done = (b"" if self.done else DONE), True
        return missing

    def _follow(self, piece: bytes) -> None:
        """Note what a piece of the first source tells."""
        if self._first is None and len(piece) <= MAX_FIRST_BYTES:
            self._first = piece
        else:
            self._shown = True
        if self._finish.take(piece) and _USAGE.search(piece):
            self._needs_usage = False
        if b"[DONE]" in piece and _DONE.search(piece):
            self.done = True
        if self._may_switch:
            for chunk in _chunks(piece):
                self._listen(chunk)

    def _stripped(self, piece: bytes) -> bytes:
        """Without the token ids, which are kept, and without chunks that have nothing else."""
        if b"\r" in piece:
            return self._rebuilt(piece)
        kept = []
        for each in piece.split(b"\n\n"):
            found = _IDS.search(each)
            if found is None:
                if b'"token_ids"' in each:
                    each = self._rebuilt(each + b"\n\n").removesuffix(b"\n\n")
                elif any(_shows(chunk) for chunk in _chunks(each)):
                    self._traced = False
            else:
                self.ids.extend(_ids_in(found[1]))
                if not self._ids_wanted:
                    each = each[: found.start()] + each[found.end() :]
                    if _SHOWS_NOTHING.search(each):
                        continue
            kept.append(each)
        return b"\n\n".join(kept) if len(kept) > 1 else b""

    def _rebuilt(self, piece: bytes) -> bytes:
        """The same in the identity of the first source; what the client has already is left out."""
        out = []
        for data in data_of(piece):
            if data == "[DONE]":
                out.append(self.end())
            elif (chunk := self._fitted(_read(data))) is not None:
                out.append(event(json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))))
        return b"".join(out)

    def _fitted(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """The chunk as the client gets it; None: it says nothing new."""
        usage = chunk.get("usage")
        choices = [] if self._way == "usage" else [each for each in _choices(chunk) if self._fit_choice(each)]
        if not choices and not usage:
            return None
        self._shown = True
        self._finish.note(choices)
        if self._moved and self._may_switch:
            self._listen(chunk)
        if isinstance(usage, dict):
            self._needs_usage = False
            chunk["usage"] = self._counted(usage)
        identity = self._identity
        if self._way == "text":
            identity = {key: value for key, value in identity.items() if key != "model"}
        return {**chunk, **identity, "choices": choices}

    def _fit_choice(self, choice: dict[str, Any]) -> bool:
        """Does it say anything new? What it repeats and what was not asked for is taken out of it."""
        ids, delta = choice.get("token_ids"), choice.get("delta")
        if isinstance(ids, list):
            self.ids += ids
            if not self._ids_wanted:
                del choice["token_ids"]
        elif _choice_shows(choice):
            self._traced = False
        if self._moved and isinstance(delta, dict) and delta.pop("role", None) and not delta.get("content"):
            delta.pop("content", None)
        return bool(delta or choice.get("finish_reason") or choice.get("logprobs") or (self._ids_wanted and ids))

    def _counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Of the whole answer."""
        prompt, completion = (_count(usage.get(key)) for key in ("prompt_tokens", "completion_tokens"))
        if self._way == "usage":
            given = self._body.get("resume_token_ids")
            completion = len(self.ids) + (len(given) if isinstance(given, list) else 0)
        completion += self._uncounted
        counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**usage, **counted}

    def _listen(self, chunk: Mapping[str, Any]) -> None:
        """Keep the text, for a model that has other tokens."""
        for choice in _choices(chunk):
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._called = self._called or bool(delta.get("tool_calls"))
                text = delta.get("content")
                if isinstance(text, str) and self._text_size <= MAX_TEXT:
                    self._text.append(text)
                    self._text_size += len(text)

    def _left(self, key: str, value: object) -> object:
        """A limit of tokens without those that were shown already, as far as they were counted."""
        return max(1, value - len(self.ids)) if key in LIMITS and isinstance(value, int) else value

    def _is_plain_text(self) -> bool:
        """Is what was said so far something that another model can read and go on with?"""
        if self._called or self.choices > 1 or self._text_size > MAX_TEXT:
            return False
        return not (self._shaped and self._text_size)

    def _has_shown_nothing(self) -> bool:
        if self._shown is None:
            self._shown = self._first is not None and any(_shows(chunk) for chunk in _chunks(self._first))
        return not self._shown


def _shapes(name: str, value: object) -> bool:
    if name == "response_format" and isinstance(value, dict):
        return value.get("type") != "text"
    return bool(value)


def _ids_in(digits: bytes) -> list[int]:
    try:
        return [int(each) for each in digits.split(b",")] if digits.strip() else []
    except ValueError:
        raise EngineFailed("token ids that can't be read") from None


def _count(value: object) -> int:
    """What an engine counted, if it did."""
    return value if isinstance(value, int) else 0


def _identity(first: bytes) -> dict[str, Any]:
    """What all chunks of a stream have in common, by its first piece."""
    chunk: Mapping[str, Any] = next(iter(_chunks(first)), {})
    return {key: chunk[key] for key in ("id", "created", "model") if key in chunk}


def _refuse_errors(piece: bytes) -> None:
    for data in data_of(piece):
        if (problem := error_in(data)) is not None:
            raise failure(data, problem)


def _chunks(piece: bytes) -> list[dict[str, Any]]:
    return [_read(data) for data in data_of(piece) if data != "[DONE]"]


def _read(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict):
        raise EngineFailed("an event that can't be read")
    return chunk


def _choices(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _shows(chunk: Mapping[str, Any]) -> bool:
    return any(_choice_shows(choice) for choice in _choices(chunk))


def _choice_shows(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    said = isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")
    return said or bool(choice.get("finish_reason"))
