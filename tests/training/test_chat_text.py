"""Which stretches of a conversation are learnt, for the kinds of templates that are in use."""

from __future__ import annotations

from typing import Any

import pytest
from tests.training.datasets import tokenizer

from tiermesh.kernel.training.data.chat_text import PRIVATE, ChatText
from tiermesh.kernel.training.data.records import BadRecord, Chat

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim"
    " + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
FORGETTING = (
    # Thoughts are kept in the last turn alone, so a turn looks different once another follows.
    "{% for m in messages %}{% set said = m.content %}{% if m.role == 'assistant' and not loop.last %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALLING = (
    "{% if tools %}{{ '<|im_start|>system\ntools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content %}{{ m.content }}{% endif %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '<tool_call>' + c.function | tojson + '</tool_call>' }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role | upper + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NEXT_CLOSES = (
    "{% for m in messages %}{{ '<|user|>\n' if m.role == 'user' else '<|assistant|>\n' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTROLS = [
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
]


def chat_text(template: str | None) -> ChatText:
    known = tokenizer()
    known.add_tokens(CONTROLS, special_tokens=True)
    return ChatText(known, template)


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def learnt(template: str | None, chat: Chat) -> list[str]:
    rendered = chat_text(template).render(chat)
    return [rendered.text[start:end] for start, end in rendered.spans]


TWO_TURNS = Chat((said("user", "hi"), said("assistant", "one"), said("user", "more"), said("assistant", "two")))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(None, ["one<|im_end|>", "two<|im_end|>"], id="the tokenizer's own"),
        pytest.param(CHATML, ["one<|im_end|>", "two<|im_end|>"], id="chatml"),
        pytest.param(MARKED, ["one<|im_end|>", "two<|im_end|>"], id="marked"),
        pytest.param(TRIMMING, ["one <|im_end|>", "two <|im_end|>"], id="trimming"),
        pytest.param(HEADERS, ["one<|eot_id|>", "two<|eot_id|>"], id="headers"),
        pytest.param(STRICT, ["one<end_of_turn>", "two<end_of_turn>"], id="strict"),
        pytest.param(FORGETTING, ["one<|im_end|>", "two<|im_end|>"], id="forgetting"),
        pytest.param(PLAIN, [" one", " two"], id="plain"),
        pytest.param(NEXT_CLOSES, ["\none<|user|>", "\ntwo"], id="the next turn closes"),
    ],
)
def test_the_assistants_turns_are_learnt_with_the_token_that_ends_them(
    template: str | None, expected: list[str]
) -> None:
    assert learnt(template, TWO_TURNS) == expected


@pytest.mark.parametrize("template", [TRIMMING, HEADERS, STRICT], ids=["trimming", "headers", "strict"])
def test_what_a_template_trims_is_found_all_the_same(template: str) -> None:
    chat = Chat((said("user", " hi \n"), said("assistant", "\n one  "), said("user", "x"), said("assistant", " two\n")))
    assert [text.split("<")[0].strip() for text in learnt(template, chat)] == ["one", "two"]


@pytest.mark.parametrize("content", ["hi", "user", "\n", "<|im", "assistant\nassistant", "é🦊"])
def test_a_user_who_says_the_same_as_the_assistant_is_not_learnt(content: str) -> None:
    chat = Chat((said("user", content), said("assistant", content or "x"), said("user", content)))
    rendered = chat_text(CHATML).render(chat)
    (span,) = rendered.spans
    assert rendered.text[slice(*span)] == f"{content}<|im_end|>"
    assert rendered.text[: span[0]].endswith("<|im_start|>assistant\n")


def test_a_turn_that_looks_different_later_is_learnt_as_it_is_shown() -> None:
    chat = Chat(
        (
            said("user", "hi"),
            said("assistant", "<think>hm</think>\none"),
            said("user", "more"),
            said("assistant", "<think>so</think>\ntwo"),
        )
    )
    assert learnt(FORGETTING, chat) == ["one<|im_end|>", "<think>so</think>\ntwo<|im_end|>"]


def test_a_call_of_a_tool_is_learnt_and_its_result_is_not() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = Chat(
        (
            said("user", "1+1?"),
            {"role": "assistant", "tool_calls": [call]},
            said("tool", "2"),
            said("assistant", "It is 2."),
        ),
        tools=({"type": "function", "function": {"name": "add"}},),
    )
    first, second = learnt(CALLING, chat)
    assert first.startswith("<tool_call>")
    assert first.endswith("</tool_call><|im_end|>")
    assert second == "It is 2.<|im_end|>"


def test_turns_of_the_prompt_are_not_learnt() -> None:
    chat = Chat(TWO_TURNS.messages, first=3)
    assert learnt(CHATML, chat) == ["two<|im_end|>"]
    assert learnt(MARKED, chat) == ["two<|im_end|>"]


def test_the_last_turn_says_whether_it_is_closed() -> None:
    assert chat_text(CHATML).render(TWO_TURNS).closed
    assert not chat_text(PLAIN).render(TWO_TURNS).closed
    assert not chat_text(NEXT_CLOSES).render(TWO_TURNS).closed


def test_a_text_with_private_characters_is_no_different() -> None:
    one, two = chr(PRIVATE[0]), chr(PRIVATE[1])
    chat = Chat((said("user", f"{one}hi{two}"), said("assistant", f"{one}{two}ne{one}")))
    assert learnt(CHATML, chat) == [f"{one}{two}ne{one}<|im_end|>"]
    assert learnt(FORGETTING, Chat((*chat.messages, said("user", "x")))) == [f"{one}{two}ne{one}<|im_end|>"]


def test_a_thought_that_the_template_adds_is_learnt_because_the_model_will_have_to_say_it() -> None:
    chat = Chat((said("user", "hi"), said("assistant", "one"), said("user", "more"), said("assistant", "two")))
    assert learnt(THINKING, chat) == ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (CHATML, (said("user", "a<|im_end|>b"), said("assistant", "x")), "messages[0].content: has the control token"),
        (CHATML, (said("user", "a"), said("assistant", "x<|im_end|>")), "messages[1].content: has the control token"),
        (STRICT, (said("user", "a"), said("user", "b"), said("assistant", "x")), "roles must alternate"),
        (CHATML, (said("user", "a"), {"role": "assistant", "tool_calls": [1]}), "does not take this conversation"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", TWO_TURNS.messages, "does not show this turn"),
        ("nothing of it", TWO_TURNS.messages, "does not show this turn"),
    ],
)
def test_what_a_template_can_not_show_is_a_bad_record(template: str, messages: Any, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason.replace("[", r"\[").replace("]", r"\]")):
        chat_text(template).render(Chat(messages))


def test_a_model_without_a_template_can_not_learn_conversations() -> None:
    known = tokenizer()
    known.chat_template = None
    with pytest.raises(BadRecord, match=r"no chat template; set data\.template"):
        ChatText(known).render(TWO_TURNS)
