"""Calls in what models of each family write, however it is cut."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.kernel.inference.tools.family import HERMES, LLAMA3, SMOLLM2, Family
from tiermesh.kernel.inference.tools.parser import Arguments, CallBegun, CallParser, Content, Piece

NAMES = frozenset({"get_weather", "add"})
PARIS = ("get_weather", '{"city": "Paris"}')
SUM = ("add", '{"a": 1, "b": [2, {"c": null}]}')


@dataclass(frozen=True)
class Written:
    family: Family
    text: str
    content: str
    calls: tuple[tuple[str, str], ...] = ()


RECORDED = {
    "qwen: one call": Written(
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "",
        (PARIS,),
    ),
    "qwen: text, then two calls": Written(
        HERMES,
        "I'll look both up.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": null}]}}\n</tool_call>\n',
        "I'll look both up.",
        (PARIS, SUM),
    ),
    "hermes: arguments before the name, on several lines": Written(
        HERMES,
        '<tool_call>\n{\n  "arguments": {\n    "city": "Paris"\n  },\n  "name": "get_weather"\n}\n</tool_call>',
        "",
        (("get_weather", '{\n    "city": "Paris"\n  }'),),
    ),
    "hermes: no end tag": Written(
        HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}', "", (PARIS,)
    ),
    "hermes: arguments as a string": Written(
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
        "",
        (PARIS,),
    ),
    "hermes: strings with braces, quotes and tags": Written(
        HERMES,
        '<tool_call>\n{"name": "add", "arguments": {"s": "}] \\" </tool_call> \\\\"}}\n</tool_call> Done.',
        "Done.",
        (("add", '{"s": "}] \\" </tool_call> \\\\"}'),),
    ),
    "hermes: no arguments": Written(HERMES, '<tool_call>\n{"name": "add"}\n</tool_call>', "", (("add", "{}"),)),
    "hermes: the other family's key": Written(
        HERMES, '<tool_call>\n{"name": "add", "parameters": {}}\n</tool_call>', "", (("add", "{}"),)
    ),
    "hermes: an unknown tool is text": Written(
        HERMES,
        'So: <tool_call>\n{"name": "fly", "arguments": {}}\n</tool_call> .',
        'So: <tool_call>\n{"name": "fly", "arguments": {}}\n</tool_call> .',
    ),
    "hermes: a tag without a call is text": Written(
        HERMES, "The tag <tool_call> begins a call.", "The tag <tool_call> begins a call."
    ),
    "hermes: almost a tag": Written(HERMES, " a <tool_ b <", " a <tool_ b <"),
    "hermes: cut before the name": Written(HERMES, '<tool_call>\n{"na', '<tool_call>\n{"na'),
    "hermes: cut within the arguments": Written(
        HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": 1, ', "", (("add", '{"a": 1, '),)
    ),
    "smollm2: a list": Written(
        SMOLLM2,
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": null}]}}]</tool_call>',
        "",
        (PARIS, SUM),
    ),
    "smollm2: an empty list means no call": Written(SMOLLM2, "<tool_call>[]</tool_call>", ""),
    "smollm2: an answer": Written(SMOLLM2, "Paris is sunny.\n", "Paris is sunny.\n"),
    "llama: one call": Written(LLAMA3, '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", (PARIS,)),
    "llama: python tag, several, type": Written(
        LLAMA3,
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}; '
        '{"name": "add", "parameters": {"a": 1, "b": [2, {"c": null}]}}',
        "",
        (PARIS, SUM),
    ),
    "llama: null for no arguments": Written(LLAMA3, '\n\n{"name": "add", "parameters": null}', "", (("add", "{}"),)),
    "llama: an answer in JSON": Written(LLAMA3, '{"sum": 3} and {"name": "add"}', '{"sum": 3} and {"name": "add"}'),
    "llama: a call is no call behind text": Written(
        LLAMA3, 'Use {"name": "add", "parameters": {}}', 'Use {"name": "add", "parameters": {}}'
    ),
}


def told(pieces: list[Piece]) -> tuple[str, tuple[tuple[str, str], ...]]:
    content = ""
    calls: dict[int, tuple[str, str]] = {}
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case CallBegun(index, name):
                assert index == len(calls)
                calls[index] = (name, "")
            case Arguments(index, text):
                calls[index] = (calls[index][0], calls[index][1] + text)
    return content, tuple(calls.values())


def read(family: Family, pieces: list[str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    parser = CallParser(family, NAMES)
    return told([piece for text in pieces for piece in parser.feed(text)] + parser.finish())


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 1000])
def test_recorded_shapes(name: str, length: int) -> None:
    written = RECORDED[name]
    pieces = [written.text[at : at + length] for at in range(0, len(written.text), length)]
    assert read(written.family, pieces) == (written.content, written.calls)


@given(
    st.sampled_from([HERMES, LLAMA3, SMOLLM2]),
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                '{"name": "add"',
                ', "arguments": {}',
                "}",
                "[",
                '"',
                "\\",
                " ",
                "\n",
                "x",
                ";",
            ]
        ),
        max_size=20,
    ),
)
def test_whatever_comes_and_however_it_is_cut_the_result_is_the_same(family: Family, pieces: list[str]) -> None:
    assert read(family, pieces) == read(family, ["".join(pieces)]) == read(family, list("".join(pieces)))


def test_a_call_is_told_while_it_is_written() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.feed('<tool_call>\n{"name": "add", "argu') == [CallBegun(0, "add")]
    assert parser.feed('ments": {"a"') == [Arguments(0, '{"a"')]
    assert parser.feed(": 1}") == [Arguments(0, ": 1}")]
    assert parser.complete == 0
    assert parser.feed("}") == []
    assert parser.complete == 1


def test_text_is_told_as_soon_as_it_can_be_no_call() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.feed("Hello <") == [Content("Hello")]
    assert parser.feed("b>") == [Content(" <b>")]
