"""A conversation as the text that a template makes of it, and which stretches of it the assistant says.

Theory of operation. Few templates mark the assistant's turns (`{% generation %}`), so they are found by looking:

1. where the template has the marks, they are used;
2. else the conversation is rendered a second time with a private character on each side of each content that is
   learnt. If taking them out again gives the first rendering, they stood where the contents are. Templates that look
   into contents (trim them, take thoughts out of them) fail this test, and turns of more than a content (calls of
   tools) are not tried;
3. then for each turn it is rendered again with a private character instead of the turn: what is the same before and
   behind that character is not the turn's.

A turn begins where the template's prompt for an answer ends, so that what the template itself puts before a content
(an empty thought) is learnt: the model will have to say it. It reaches to the end of the special token behind it,
because the model has to learn to stop; white space that the template writes after that is not learnt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from jinja2 import TemplateError

from tiermesh.kernel.training.data.records import BadRecord, Chat, Message

PRIVATE = range(0xE0F0, 0xF8FF)
"""Of Unicode's private use area. What a conversation itself has of them is not used with it."""

MAX_ADDED = 64
"""Characters that a template may put between its prompt and a content; further away is the prompt of another turn."""

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
        contents = self._by_insertion(chat, text)
        if contents is None:
            contents = self._by_replacement(chat, text)
        return self._rendered(text, [self._whole(text, content) for content in contents])

    def _rendered(self, text: str, spans: Sequence[Span]) -> Rendered:
        if not spans:
            raise BadRecord("the template shows nothing of what the assistant says")
        start, end = spans[-1]
        said = text[start:end]
        closed = bool(self._control and any(found.end() == len(said) for found in self._control.finditer(said)))
        return Rendered(text, tuple(spans), closed)

    def _by_marks(self, chat: Chat) -> Rendered:
        """The template's own; those of turns before `first` are not learnt."""
        text, marks = self._call(chat, chat.messages, marks=True)
        skipped = sum(message["role"] == "assistant" for message in chat.messages[: chat.first])
        return self._rendered(text, marks[skipped:])

    def _by_insertion(self, chat: Chat, text: str) -> list[Span] | None:
        """The contents; None where the template does more than copy them."""
        learnt = [at for at in range(len(chat.messages)) if _learnt(chat, at)]
        if any(set(chat.messages[at]) - {"role", "content"} for at in learnt):
            return None
        first, last = _unused(text, chat)
        wrapped = list(chat.messages)
        for at in learnt:
            wrapped[at] = {**wrapped[at], "content": f"{first}{wrapped[at]['content']}{last}"}
        try:
            marked = self._render(chat, wrapped)
        except BadRecord:
            return None
        if marked.replace(first, "").replace(last, "") != text:
            return None
        spans = _between(marked, first, last)
        return spans if len(spans) == len(learnt) else None

    def _by_replacement(self, chat: Chat, text: str) -> list[Span]:
        """What each turn shows, by what is not there without it."""
        return [self._replaced(chat, text, at) for at in range(len(chat.messages)) if _learnt(chat, at)]

    def _replaced(self, chat: Chat, text: str, at: int) -> Span:
        instead, _ = _unused(text, chat)
        messages = list(chat.messages)
        messages[at] = {"role": messages[at]["role"], "content": instead}
        other = self._render(chat, messages)
        before, found, behind = other.partition(instead)
        if not found or not text.startswith(before) or not text.endswith(behind):
            raise BadRecord(f"messages[{at}]: the template does not show this turn, or not in one piece")
        start, end = len(before), len(text) - len(behind)
        if end <= start:
            raise BadRecord(f"messages[{at}]: the template shows nothing of this turn")
        return start, end

    def _whole(self, text: str, content: Span) -> Span:
        """The turn that this content is in: from the end of its prompt to the end of the token that closes it."""
        start, end = content
        prompted = text.rfind(self._prompt, 0, start) + len(self._prompt)
        if len(self._prompt) <= prompted and start - prompted <= MAX_ADDED and not self._controls(text[prompted:start]):
            start = prompted
        closing = self._closing.match(text, end) if self._closing else None
        return start, closing.end() if closing else end

    def _controls(self, text: str) -> bool:
        return bool(self._control and self._control.search(text))

    @cached_property
    def _prompt(self) -> str:
        """What the template writes before an answer; empty where that can't be told."""
        asked = Chat(({"role": "user", "content": "x"},))
        try:
            without, prompted = (self._render(asked, asked.messages, prompted=one) for one in (False, True))
        except BadRecord:
            return ""
        return prompted[len(without) :] if prompted.startswith(without) else ""

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


def _unused(text: str, chat: Chat) -> tuple[str, str]:
    """Two private characters that neither the text nor a content has."""
    taken = text + "".join(str(message.get("content", "")) for message in chat.messages)
    first, last = islice((chr(code) for code in PRIVATE if chr(code) not in taken), 2)
    return first, last


def _between(marked: str, first: str, last: str) -> list[Span]:
    """What stood between these characters, in the text without them."""
    spans, taken = [], 0
    for found in re.finditer(f"{first}([^{first}{last}]*){last}", marked):
        start = found.start() - taken
        spans.append((start, start + len(found.group(1))))
        taken += 2
    return spans
