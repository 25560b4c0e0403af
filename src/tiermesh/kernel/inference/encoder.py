"""A chat becomes tokens by the model's own template, and what its answer must look like becomes a grammar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tiermesh.errors import ContextTooLong, InvalidInput
from tiermesh.kernel.inference.chat import Chat
from tiermesh.kernel.inference.grammar import Grammars, TokenGrammar
from tiermesh.kernel.inference.tools.constraint import constraint
from tiermesh.kernel.inference.tools.conversation import written_out
from tiermesh.kernel.inference.tools.family import SMOLLM2, Family, recognise


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the generator needs of a chat, and what is needed to read its answer.

    `family` None: no tools. `grammars` has one entry for each answer wanted. `bytes_of` is there when logprobs are.
    """

    prompt: list[int]
    max_tokens: int
    family: Family | None
    grammars: tuple[TokenGrammar | None, ...]
    bytes_of: Callable[[int], bytes] | None


class Encoder:
    """For one model, whose tokens are 0 to `vocabulary` - 1, often more than its tokenizer names.

    Used by one thread at a time.
    """

    def __init__(self, tokenizer: Any, context_length: int, end_tokens: Collection[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._made_grammars: Grammars | None = None
        self._template: str | None = tokenizer.chat_template
        self._family = recognise(self._template or "", tokenizer.all_special_tokens)
        self.context_length = context_length
        """Tokens, of prompt and answer together."""

    def encode(self, chat: Chat) -> Encoded:
        """A user's text can't pose as a control token of the template.

        Raises `InvalidInput` where the template refuses (for instance two user turns in a row) and `ContextTooLong`.
        """
        self._refuse_unknown_tokens(chat)
        family = self._family_for(chat)
        tokens = self._apply_template(chat, family)
        room = self._room(chat.model, "messages", len(tokens))
        if len(chat.resumed) > room:
            raise InvalidInput("resume_token_ids: more than the context has room for", param="resume_token_ids")
        lark = constraint(chat.toolbox, family, chat.answer_schema)
        param = "response_format" if chat.answer_schema is not None else "tools"
        return Encoded(
            prompt=tokens,
            max_tokens=room if chat.max_tokens is None else min(room, chat.max_tokens),
            family=family,
            grammars=tuple((lark and self._grammars.begin(lark, param, chat.resumed)) or None for _ in range(chat.n)),
            bytes_of=None if chat.sampling.logprobs is None else self._grammars.bytes_of,
        )

    def encode_texts(self, model: str, wanted: Any) -> list[list[int]]:
        """The tokens of an embedding's `input`, which `EmbeddingRequest` has checked, one list a text."""
        rows = wanted if isinstance(wanted, list) and not isinstance(wanted[0], int) else [wanted]
        tokens = [list(self._tokenizer(row)["input_ids"]) if isinstance(row, str) else list(row) for row in rows]
        for row in tokens:
            self._room(model, "input", len(row))
            if not row or not self._known(row):
                raise InvalidInput("input: tokens that the model does not have, or none at all", param="input")
        return tokens

    @property
    def _grammars(self) -> Grammars:
        """Made with the first request that needs it: that takes half a second."""
        if self._made_grammars is None:
            self._made_grammars = Grammars(self._tokenizer, self._end_tokens)
        return self._made_grammars

    def _known(self, tokens: Sequence[int]) -> bool:
        return all(0 <= token < self._vocabulary for token in tokens)

    def _refuse_unknown_tokens(self, chat: Chat) -> None:
        for param, tokens in (("logit_bias", [*chat.sampling.logit_bias]), ("resume_token_ids", chat.resumed)):
            if not self._known(tokens):
                known = f"0 to {self._vocabulary - 1}"
                raise InvalidInput(f"{param}: a token that {chat.model} does not have; it has {known}", param=param)

    def _family_for(self, chat: Chat) -> Family | None:
        if chat.toolbox.tools and self._family is None:
            raise InvalidInput(f"tools: how {chat.model} calls tools is not known here", param="tools")
        return self._family if chat.toolbox.tools else None

    def _apply_template(self, chat: Chat, family: Family | None) -> list[int]:
        if self._template is None:
            raise InvalidInput(f"model: {chat.model} has no chat template, so it can't chat", param="model")
        messages = [dict(message) for message in chat.messages]
        if self._family is SMOLLM2:
            messages = [dict(message) for message in written_out(messages, chat.toolbox, self._family)]
        tools = [dict(tool.definition) for tool in chat.toolbox.tools] if family is not None and family.native else None
        try:
            encoded = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, sanitize_control_tokens=True
            )
        except TemplateError as error:
            raise InvalidInput(
                f"messages: {chat.model} does not take this conversation: {error}", param="messages"
            ) from error
        return list(encoded["input_ids"])

    def _room(self, model: str, param: str, length: int) -> int:
        room = self.context_length - length
        if room < 1:
            raise ContextTooLong(
                f"{param}: {length} tokens, and {model} has a context of {self.context_length}; shorten it or choose "
                "a model with a longer context",
                param=param,
            )
        return room
