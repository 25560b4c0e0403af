"""A conversation as the text that a template makes of it, and which stretches of it the assistant says.

Theory of operation. Few templates mark the assistant's turns (`{% generation %}`), so they are found by looking:

1. where the template has the marks, they are used;
2. else the conversation is rendered a second time with two private characters around each content that is learnt.
   If taking them out again gives the first rendering, they stood where the turns are. A template that looks into
   contents (trims them, splits thoughts off) fails this test; a turn of more than its content (tool calls) has none;
3. then each turn is what rendering one message more adds, after the generation prompt.

A turn reaches to the end of the special token that closes it, because the model has to learn to stop; white space
that the template writes behind that is not learnt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tiermesh.kernel.training.data.records import BadRecord, Chat, Message

OPEN, CLOSE = "\ue0f0", "\ue0f1"
"""Of Unicode's private use area: no text of a published data set has them, and one that has goes the third way."""

Span = tuple[int, int]
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """`spans` are the stretches to be learnt, in characters, in order and apart. `closed`: the last one says stop."""

    text: str
    spans: tuple[Span, ...]
    closed: bool


class ChatText:
    """For one tokenizer and template; `template` None is the tokenizer's own."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        own = tokenizer.chat_template
        text = template or (own if isinstance(own, str) else (own or {}).get("default", ""))
        self.exists = bool(text)
        self._marked = bool(_MARKED.search(text or ""))
        controls = {str(token) for token in tokenizer.all_special_tokens}
        controls |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        listed = "|".join(re.escape(token) for token in sorted(controls - {""}, key=len, reverse=True))
        self._control = re.compile(listed) if listed else None
        self._closing = re.compile(rf"\s*(?:{listed})") if listed else None

    def render(self, chat: Chat) -> Rendered:
        """Raises `BadRecord` where the template refuses, or where a text poses as a control token."""
        if not self.exists:
            raise BadRecord("is a conversation, but the model's tokenizer has no chat template; set data.template")
        self._refuse_controls(chat.messages)
        if self._marked:
            return self._by_marks(chat)
        text = self._render(chat, chat.messages)
        inner = self._by_insertion(chat, text)
        spans = [self._closed(text, span) for span in inner] if inner is not None else self._by_growing(chat, text)
        return self._rendered(text, spans)

    def _rendered(self, text: str, spans: Sequence[Span]) -> Rendered:
        apart = tuple((start, end) for start, end in spans if start < end)
        if not apart:
            raise BadRecord("the template shows nothing of what the assistant says")
        start, end = apart[-1]
        said = text[start:end]
        closed = bool(self._control and any(found.end() == len(said) for found in self._control.finditer(said)))
        return Rendered(text, apart, closed)

    def _by_marks(self, chat: Chat) -> Rendered:
        """The template's own; those of turns before `first` are not learnt."""
        text, marks = self._call(chat, chat.messages, marks=True)
        skipped = sum(message["role"] == "assistant" for message in chat.messages[: chat.first])
        return self._rendered(text, marks[skipped:])

    def _by_insertion(self, chat: Chat, text: str) -> list[Span] | None:
        if OPEN in text or CLOSE in text:
            return None
        wrapped = []
        for at, message in enumerate(chat.messages):
            if not _learnt(chat, at):
                wrapped.append(message)
            elif set(message) - {"role", "content"}:
                return None
            else:
                wrapped.append({**message, "content": f"{OPEN}{message['content']}{CLOSE}"})
        try:
            marked = self._render(chat, wrapped)
        except BadRecord:
            return None
        if marked.replace(OPEN, "").replace(CLOSE, "") != text:
            return None
        return _spans_of(marked, sum(_learnt(chat, at) for at in range(len(chat.messages))))

    def _by_growing(self, chat: Chat, text: str) -> list[Span]:
        """What each turn adds. Where an earlier turn looks different once there is a later one, all up to where the
        renderings part is taken."""
        return [self._grown(chat, text, at) for at in range(len(chat.messages)) if _learnt(chat, at)]

    def _grown(self, chat: Chat, text: str, at: int) -> Span:
        start = self._turn_start(chat, text, at)
        last = at == len(chat.messages) - 1
        end = len(text) if last else _shared(text, self._render(chat, chat.messages[: at + 1]))
        if end <= start:
            raise BadRecord(f"messages[{at}]: the template shows this turn in another way than expected")
        return start, start + len(text[start:end].rstrip())

    def _turn_start(self, chat: Chat, text: str, at: int) -> int:
        before = chat.messages[:at]
        if not before:
            content = str(chat.messages[0].get("content", ""))
            return max(0, text.find(content.strip()))
        prompted = _shared(text, self._render(chat, before, prompted=True))
        return max(prompted, _shared(text, self._render(chat, before)))

    def _closed(self, text: str, span: Span) -> Span:
        """With the special token that ends the turn, if one does."""
        closing = self._closing.match(text, span[1]) if self._closing else None
        return span[0], closing.end() if closing else span[1]

    def _refuse_controls(self, messages: Sequence[Message]) -> None:
        if self._control is None:
            return
        for at, message in enumerate(messages):
            found = self._control.search(str(message.get("content") or ""))
            if found:
                raise BadRecord(f"messages[{at}].content: has the control token {found.group()!r} as text")

    def _render(self, chat: Chat, messages: Sequence[Message], *, prompted: bool = False) -> str:
        return self._call(chat, messages, prompted=prompted)[0]

    def _call(
        self, chat: Chat, messages: Sequence[Message], *, prompted: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, spans = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=[dict(tool) for tool in chat.tools] or None,
                chat_template=self._tokenizer.get_chat_template(self._template, None),
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompted,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadRecord(f"the chat template does not take this conversation: {reason}") from error
        return rendered[0], [(int(start), int(end)) for start, end in spans[0]] if marks else []

    @property
    def _special_tokens(self) -> Mapping[str, Any]:
        special: Mapping[str, Any] = self._tokenizer.special_tokens_map
        return special


def _learnt(chat: Chat, at: int) -> bool:
    return at >= chat.first and chat.messages[at]["role"] == "assistant"


def _spans_of(marked: str, expected: int) -> list[Span] | None:
    """Where the private characters stood, in the text without them."""
    spans, taken = [], 0
    for found in re.finditer(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}", marked):
        start = found.start() - taken
        spans.append((start, start + len(found.group(1))))
        taken += 2
    return spans if len(spans) == expected and marked.count(OPEN) == marked.count(CLOSE) == expected else None


def _shared(one: str, other: str) -> int:
    """Length of what both begin with."""
    if one.startswith(other):
        return len(other)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
