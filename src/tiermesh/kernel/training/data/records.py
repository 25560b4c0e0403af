"""What one record of a data set says, told from the names of its fields.

Every record is understood for itself, so a file may mix them. Besides the names that a spec gives, those are known
that published data sets commonly use. What can't be used raises `BadRecord` with the reason; whoever reads the file
adds the line.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from tiermesh.protocol.training import Fields, Task

Message = Mapping[str, Any]

TEXT = ("text",)
PROMPT = ("prompt", "instruction", "question", "query")
COMPLETION = ("completion", "response", "output", "answer")
MESSAGES = ("messages", "conversations", "conversation")
CHOSEN = ("chosen", "preferred_output")
REJECTED = ("rejected", "non_preferred_output")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
"""Of records whose turns are `{"from": ..., "value": ...}`."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_REPEATS = 1000
"""A record that should be seen more often than this in one epoch is a slip of the pen."""
MAX_RECORD_CHARACTERS = 64_000_000
"""A record is held whole in memory, several times over while it becomes tokens."""

Shape = Literal["text", "completion", "chat", "pair"]


class BadRecord(ValueError):
    """This record can't be used; the text is the reason, without where it is."""


@dataclass(frozen=True, slots=True)
class Text:
    """Learnt whole."""

    text: str
    shape: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Completion:
    """The completion is learnt, as what follows the prompt directly."""

    prompt: str
    completion: str
    shape: Literal["completion"] = "completion"


@dataclass(frozen=True, slots=True)
class Chat:
    """The assistant's turns are learnt, from message number `first` on."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    first: int = 0
    shape: Literal["chat"] = "chat"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which the first is better."""

    chosen: Completion | Chat
    rejected: Completion | Chat
    shape: Literal["pair"] = "pair"


Example = Text | Completion | Chat | Pair


@dataclass(frozen=True, slots=True)
class Record:
    """`weight`: how much its targets count. `repeat`: how often it is seen in an epoch; 0.5 is every other one."""

    example: Example
    weight: float = 1.0
    repeat: float = 1.0
    fields: tuple[str, ...] = field(default=(), compare=False)
    """Which of the file's fields were read."""


def understood(raw: object, names: Fields, task: Task) -> Record:
    """What this says, as the task needs it. Raises `BadRecord`."""
    if not isinstance(raw, Mapping):
        raise BadRecord(f"is {_kind(raw)}, not an object with named fields")
    given = _Given(raw)
    example = _pair(given, names) if task == "preference" else _single(given, names, task)
    weight = given.number(names.weight, "weight", math.inf)
    repeat = given.number(getattr(names, "repeat", None), "repeat", MAX_REPEATS)
    return Record(example, weight, repeat, tuple(given.read))


def is_pair(raw: Mapping[str, Any]) -> bool:
    """Has it two answers, of which one is preferred, under usual names?"""
    return all(any(raw.get(name) is not None for name in names) for names in (CHOSEN, REJECTED))


def content_hash(example: Example) -> bytes:
    """16 bytes, the same for examples that say the same up to white space, whatever their fields were called."""
    return hashlib.blake2b(msgspec.json.encode(_plain(example)), digest_size=16).digest()


def _plain(value: object) -> object:
    match value:
        case str():
            return " ".join(value.split())
        case Text():
            return ["text", _plain(value.text)]
        case Completion():
            return ["completion", _plain(value.prompt), _plain(value.completion)]
        case Chat():
            return ["chat", _plain(value.messages), _plain(value.tools)]
        case Pair():
            return ["pair", _plain(value.chosen), _plain(value.rejected)]
        case Mapping():
            return {key: _plain(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [_plain(one) for one in value]
    return value


class _Given:
    """A record's fields, and which of them were read."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.read: list[str] = []

    def find(self, named: str | None, usual: Sequence[str]) -> Any:
        """The value under the name that the spec gives, else the first usual one that is there; None: not there."""
        for name in (named,) if named else usual:
            value = self.raw.get(name)
            if value is not None:
                self.read.append(name)
                return value
        return None

    def number(self, named: str | None, usual: str, limit: float) -> float:
        """A field that is there only where the spec names it, or `repeat`/`weight` are asked for by their name."""
        value = self.find(named, ()) if named else None
        if value is None:
            return 1.0
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= limit or math.isinf(number):
            raise BadRecord(f"{named}: is {_kind(value)} {str(value)[:40]!r}, not a {usual} (a number from 0 on)")
        return number

    def names(self) -> str:
        return ", ".join(map(str, list(self.raw)[:8])) or "none"


def _single(given: _Given, names: Fields, task: Task) -> Example:
    messages = given.find(names.messages, MESSAGES)
    if messages is not None:
        tools = given.find(None, ("tools",))
        return _chat(messages, _tools(tools))
    prompt, completion = given.find(names.prompt, PROMPT), given.find(names.completion, COMPLETION)
    if prompt is not None and completion is not None:
        return _completion(_with_input(given, prompt, names), completion)
    text = given.find(names.text, TEXT)
    if text is not None:
        return Text(_text(text, given.read[-1]))
    if is_pair(given.raw):
        raise BadRecord(f"is a pair of answers, one of them preferred, which the task {task} can't use; see preference")
    wanted = names.text or names.prompt or names.messages or "text, prompt and completion, or messages"
    raise BadRecord(f"has no {wanted}; its fields are: {given.names()}")


def _with_input(given: _Given, prompt: Any, names: Fields) -> Any:
    """Records with an `instruction` often have what it is about in `input`."""
    about = given.raw.get("input") if names.prompt is None and "instruction" in given.read else None
    if isinstance(about, str) and about.strip() and isinstance(prompt, str):
        given.read.append("input")
        return f"{prompt}\n\n{about}"
    return prompt


def _completion(prompt: Any, completion: Any) -> Completion | Chat:
    if isinstance(prompt, list) or isinstance(completion, list):
        asked, answered = _turns(prompt, "prompt"), _turns(completion, "completion")
        return _asked(asked, answered)
    answer = _text(completion, "completion")
    if not isinstance(prompt, str):
        raise BadRecord(f"prompt: is {_kind(prompt)}, not a text")
    return Completion(_encodable(prompt, "prompt"), answer)


def _asked(asked: tuple[Message, ...], answered: tuple[Message, ...]) -> Chat:
    chat = Chat(messages=(*asked, *answered), first=len(asked))
    _refuse_silent(chat)
    return chat


def _chat(messages: Any, tools: tuple[Mapping[str, Any], ...]) -> Chat:
    chat = Chat(_turns(messages, "messages"), tools)
    _refuse_silent(chat)
    return chat


def _refuse_silent(chat: Chat) -> None:
    if not any(message["role"] == "assistant" for message in chat.messages[chat.first :]):
        raise BadRecord("has no turn of the assistant, so there is nothing to learn")


def _pair(given: _Given, names: Fields) -> Pair:
    prompt = given.find(names.prompt, (*PROMPT, "input"))
    if isinstance(prompt, Mapping):  # as files for OpenAI have it
        prompt = prompt.get("messages")
    chosen, rejected = given.find(names.chosen, CHOSEN), given.find(names.rejected, REJECTED)
    if chosen is None or rejected is None:
        missing = "chosen" if chosen is None else "rejected"
        raise BadRecord(f"has no {names.model_dump()[missing] or missing}; its fields are: {given.names()}")
    pair = _explicit(prompt, chosen, rejected) if prompt is not None else _implicit(chosen, rejected)
    if _plain(pair.chosen) == _plain(pair.rejected):
        raise BadRecord("chosen and rejected are the same, so there is nothing to prefer")
    return pair


def _explicit(prompt: Any, chosen: Any, rejected: Any) -> Pair:
    return Pair(_completion(prompt, chosen), _completion(prompt, rejected))


def _implicit(chosen: Any, rejected: Any) -> Pair:
    """Whole conversations: what both begin with is the prompt."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRecord("has no prompt; only conversations can do without one")
    better, worse = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    shared = 0
    while shared < min(len(better), len(worse)) - 1 and better[shared] == worse[shared]:
        shared += 1
    return Pair(_asked(better[:shared], better[shared:]), _asked(worse[:shared], worse[shared:]))


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    """A conversation in OpenAI's shape, or in ShareGPT's. One text is one turn of whoever's part it is."""
    if isinstance(value, str) and name != "messages":
        role = "user" if name == "prompt" else "assistant"
        return ({"role": role, "content": _text(value, name)},)
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{name}: is {_kind(value)}, not a list of messages")
    return tuple(_turn(one, f"{name}[{at}]") for at, one in enumerate(value))


def _turn(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRecord(f"{where}: is {_kind(value)}, not a message with role and content")
    role = value.get("role", value.get("from"))
    role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRecord(f"{where}.role: is {str(role)[:40]!r}, not one of {', '.join(sorted(ROLES))}")
    content = value.get("content", value.get("value"))
    rest = {key: one for key, one in value.items() if key not in {"role", "from", "content", "value"}}
    calls = {key: one for key, one in rest.items() if one is not None}
    if content is None and calls.get("tool_calls"):
        return {"role": role, **calls}
    return {"role": role, "content": _content(content, f"{where}.content", role), **calls}


def _content(value: Any, where: str, role: str) -> str:
    if isinstance(value, list):
        value = _joined(value, where)
    if role == "assistant":
        return _text(value, where)
    if not isinstance(value, str):
        raise BadRecord(f"{where}: is {_kind(value)}, not a text")
    return _encodable(value, where)


def _joined(parts: list[Any], where: str) -> str:
    """The text of a content in parts."""
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    if len(texts) < len(parts) or not parts:
        raise BadRecord(f"{where}: has parts that are not text; only text can be learnt")
    return "".join(texts)


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise BadRecord(f"tools: is {_kind(value)}, not a list of definitions")
    return tuple(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{where}: is {_kind(value)}, not a text")
    if not value.strip():
        raise BadRecord(f"{where}: is empty")
    return _encodable(value, where)


def _encodable(value: str, where: str) -> str:
    if len(value) > MAX_RECORD_CHARACTERS:
        raise BadRecord(f"{where}: has {len(value):,} characters; split what is longer than {MAX_RECORD_CHARACTERS:,}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: is not valid UTF-8") from None
    return value


def _kind(value: object) -> str:
    """What JSON calls it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return "an object"
    return f"a {type(value).__name__}"
