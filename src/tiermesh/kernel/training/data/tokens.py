"""Examples become tokens, and which of them are targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from tiermesh.errors import BadSpec
from tiermesh.kernel.training.data.chat_text import ChatText, Span
from tiermesh.kernel.training.data.records import BadRecord, Chat, Completion, Text

TrainOn = Literal["assistant", "all"]


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, and 1 for each that is a target. The last one is, unless none is."""

    tokens: NDArray[np.uint32]
    learned: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Written:
    """A text before it is tokenised. `special`: the tokenizer adds what every text begins with."""

    text: str
    spans: tuple[Span, ...]
    special: bool
    end: bool

    @property
    def whole(self) -> bool:
        return self.spans == ((0, len(self.text)),)


class Coder:
    """For one tokenizer. A text is tokenised whole: what a prompt ends with may join what its answer begins with."""

    def __init__(self, tokenizer: Any, *, template: str | None = None, train_on: TrainOn = "assistant") -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BadSpec("model_name: its tokenizer can't say which characters a token stands for (no tokenizer.json)")
        self._chats = ChatText(tokenizer, template)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._end: int | None = tokenizer.eos_token_id
        self._train_on = train_on

    def documents(self, examples: Sequence[Text | Completion | Chat]) -> list[Document | BadRecord]:
        """One for each example, in order; what is wrong with those that can't be used."""
        written = [self._written(example) for example in examples]
        found: list[Document | BadRecord] = [one if isinstance(one, BadRecord) else _NOTHING for one in written]
        for special, whole in product((False, True), (False, True)):
            places = [at for at, one in enumerate(written) if _is(one, special=special, whole=whole)]
            texts = [one for at in places if isinstance(one := written[at], _Written)]
            # Where each character went is of no interest, and takes time, where all is learnt.
            encode = self._backend.encode_batch_fast if whole else self._backend.encode_batch
            encodings = encode([one.text for one in texts], add_special_tokens=special)
            for at, one, encoding in zip(places, texts, encodings, strict=True):
                found[at] = self._document(one, encoding)
        return found

    def _written(self, example: Text | Completion | Chat) -> _Written | BadRecord:
        match example:
            case Text():
                return _Written(example.text, ((0, len(example.text)),), special=True, end=True)
            case Completion():
                text = example.prompt + example.completion
                return _Written(text, self._learnt(text, ((len(example.prompt), len(text)),)), special=True, end=True)
            case Chat():
                try:
                    chat = self._chats.render(example)
                except BadRecord as bad:
                    return bad
                return _Written(chat.text, self._learnt(chat.text, chat.spans), special=False, end=not chat.closed)
        assert_never(example)

    def _learnt(self, text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        return ((0, len(text)),) if self._train_on == "all" else spans

    def _document(self, written: _Written, encoding: Any) -> Document | BadRecord:
        tokens = np.array(encoding.ids, dtype=np.uint32)
        if written.whole:
            learned = np.ones(len(tokens), dtype=np.uint8)
        else:
            learned = _covered(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), written.spans)
        if learned.any():
            # Nothing is learnt from what follows the last target.
            stop = len(learned) - int(learned[::-1].argmax())
            tokens, learned = tokens[:stop], learned[:stop]
            if written.end and self._end is not None and tokens[-1] != self._end:
                tokens = np.append(tokens, np.uint32(self._end))
                learned = np.append(learned, np.uint8(1))
        if not learned[1:].any():
            return BadRecord("has nothing to predict: less than two tokens, or no answer")
        return Document(tokens, learned)


_NOTHING = Document(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.uint8))


def _is(one: object, *, special: bool, whole: bool) -> bool:
    return isinstance(one, _Written) and one.special is special and one.whole is whole


def _covered(offsets: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.uint8]:
    """1 for tokens that stand for a character inside a span. Those without any (they do occur) go by their place."""
    starts, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    learned = np.zeros(len(offsets), dtype=np.uint8)
    for start, end in spans:
        learned |= (ends > start) & (starts < end)
    return learned
