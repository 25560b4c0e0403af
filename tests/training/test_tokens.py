"""Tokens and targets beside what transformers makes of the same conversation: template, tokenizer, prompt."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Any

import numpy as np
import pytest
from tests.training.datasets import tokenizer

from tiermesh.adapters.model_source import resolve
from tiermesh.errors import BadSpec, UnknownModel
from tiermesh.kernel.training.data.packing import pack
from tiermesh.kernel.training.data.records import BadRecord, Chat, Completion, Text
from tiermesh.kernel.training.data.tokens import Coder, Document


def conversations() -> list[Chat]:
    """Real text with quotes, code, and white space: docstrings of the standard library."""
    found = []
    for module in (json, textwrap, inspect):
        for name, value in sorted(vars(module).items()):
            if callable(value) and (said := inspect.getdoc(value)):
                asked = {"role": "user", "content": f"What does {module.__name__}.{name} do?"}
                found.append(Chat((asked, {"role": "assistant", "content": said})))
    assert len(found) > 80
    return found


def agrees(known: Any, chat: Chat, document: Document) -> None:
    prompt = known.apply_chat_template([dict(chat.messages[0])], add_generation_prompt=True)["input_ids"]
    whole = known.apply_chat_template([dict(message) for message in chat.messages])["input_ids"]
    length = len(document.tokens)
    assert document.tokens.tolist() == whole[:length]
    assert document.learned.tolist() == [0] * len(prompt) + [1] * (length - len(prompt))
    assert known.decode(document.tokens[-1]) == "<|im_end|>"
    assert known.decode(whole[length:]) == "\n"


def coded(known: Any) -> list[tuple[Chat, Document]]:
    chats = conversations()
    made = Coder(known).documents(chats)
    return [(chat, one) for chat, one in zip(chats, made, strict=True) if isinstance(one, Document)]


def test_a_conversation_is_tokenised_as_at_inference() -> None:
    known = tokenizer()
    pairs = coded(known)
    assert len(pairs) > 80
    for chat, document in pairs:
        agrees(known, chat, document)


@pytest.mark.model
def test_smollm2_learns_its_answers_alone_and_its_rows_are_full() -> None:
    from transformers import AutoTokenizer

    try:
        known = AutoTokenizer.from_pretrained(resolve("smollm2:135m").path)
    except UnknownModel as error:
        pytest.skip(str(error))
    pairs = coded(known)
    for chat, document in pairs:
        agrees(known, chat, document)
    lengths = np.array([min(512, len(document.tokens)) for _, document in pairs] * 20)
    assert lengths.sum() / (pack(lengths, 512).rows * 512) >= 0.98


@pytest.mark.parametrize(
    ("example", "whole", "learnt"),
    [
        (Text("a fox"), "a fox<|im_end|>", "a fox<|im_end|>"),
        (Completion("a b", " fox"), "a b fox<|im_end|>", " fox<|im_end|>"),
        (Completion("", "fox"), "fox<|im_end|>", "fox<|im_end|>"),
        (Completion("é 🦊 ", "🦊 é"), "é 🦊 🦊 é<|im_end|>", " 🦊 é<|im_end|>"),
        (Completion("a ", "fox<|im_end|>"), "a fox<|im_end|>", " fox<|im_end|>"),
    ],
)
def test_a_document_ends_once_and_its_prompt_is_not_learnt(example: Any, whole: str, learnt: str) -> None:
    """A token that joins the end of a prompt with the beginning of what follows is learnt."""
    known = tokenizer()
    (document,) = Coder(known).documents([example])
    assert isinstance(document, Document)
    assert known.decode(document.tokens) == whole
    assert known.decode(document.tokens[document.learned == 1]) == learnt


def test_what_a_tokenizer_puts_before_a_text_is_kept_and_not_doubled_in_a_conversation() -> None:
    from tokenizers.processors import TemplateProcessing

    known = tokenizer()
    known.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    known.chat_template = "{{ bos_token }}" + known.chat_template
    chat = Chat(({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}))
    text, completion, talk = Coder(known).documents([Text("fox"), Completion("a", " fox"), chat])
    assert isinstance(text, Document)
    assert isinstance(completion, Document)
    assert isinstance(talk, Document)
    assert [known.decode(one.tokens) for one in (text, completion)] == [
        "<|endoftext|>fox<|im_end|>",
        "<|endoftext|>a fox<|im_end|>",
    ]
    assert known.decode(completion.tokens[completion.learned == 1]) == " fox<|im_end|>"
    assert known.decode(talk.tokens).count(known.bos_token) == known.decode(talk.tokens).count("<|im_start|>")


def test_order_is_kept_and_bad_ones_are_in_their_places() -> None:
    silent = Chat(({"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "x"}))
    made = Coder(tokenizer()).documents([Text("a"), silent, Completion("a b", " c"), Text("b c")])
    assert [isinstance(one, BadRecord) for one in made] == [False, True, False, False]
    lengths = [len(one.tokens) for one in made if isinstance(one, Document)]
    assert lengths[0] < lengths[1]


def test_a_tokenizer_that_can_not_place_its_tokens_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(BadSpec, match=r"no tokenizer\.json"):
        Coder(Slow())
