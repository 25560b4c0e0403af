"""Whatever is asked, in whichever words: a clear refusal, or a chat that has OpenAI's shape. Whatever an engine says:
an answer, or the engine's failure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tests.daemon.test_translate import completion, message, ollama, response

from tiermesh.daemon.api import translate_anthropic, translate_ollama, translate_responses
from tiermesh.daemon.api.said import pieces_in, pieces_of
from tiermesh.daemon.api.translate_completions import chat_bodies
from tiermesh.daemon.sse import event
from tiermesh.errors import EngineFailed, InvalidInput
from tiermesh.protocol.anthropic import MessagesRequest
from tiermesh.protocol.completions import CompletionRequest
from tiermesh.protocol.ollama import OllamaChatRequest, OllamaGenerateRequest
from tiermesh.protocol.openai import ChatCompletionRequest
from tiermesh.protocol.responses import ResponsesRequest
from tiermesh.protocol.validation import validated

Json = dict[str, Any]

WORDS = re.findall(
    r"\w+",
    """
model messages role user assistant system tool developer content text type input output arguments name id
tool_calls function call_id tool_call_id tool_use tool_result tool_use_id tool_name function_call function_call_output
input_text output_text input_image image image_url images source base64 url media_type data input_schema parameters
tools tool_choice any auto none required stop stop_sequences format schema json json_schema json_object options
num_predict temperature top_p top_k seed mirostat thinking enabled think stream prompt suffix echo logprobs n
instructions max_tokens max_output_tokens include reasoning effort store metadata choices delta message index
finish_reason length tool_calls usage prompt_tokens completion_tokens error token logprob top_logprobs
""",
)

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(WORDS)
)
ANY = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=12,
)
OBJECT = st.dictionaries(st.sampled_from(WORDS), ANY, max_size=6)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """An object with any of these fields, now and then with something else in one of them."""
    return st.fixed_dictionaries({}, optional={name: value | ANY for name, value in fields.items()})


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, min_size=1, max_size=4)


CALL = some(id=st.just("c"), function=some(name=st.just("f"), arguments=OBJECT | st.just("{}")))
BLOCK = some(
    type=st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking", "input_text", "output_text"]),
    text=st.text(max_size=3),
    id=st.just("c"),
    tool_use_id=st.just("c"),
    name=st.just("f"),
    input=OBJECT,
    content=st.text(max_size=3),
    source=some(type=st.just("base64"), media_type=st.just("image/png"), data=st.just("abc")),
)
TURN = some(
    role=st.sampled_from(["user", "assistant", "system", "tool"]),
    content=st.text(max_size=3) | mostly(BLOCK),
    tool_calls=mostly(CALL),
    type=st.sampled_from(["message", "function_call", "function_call_output"]),
    call_id=st.just("c"),
    name=st.just("f"),
    arguments=st.just("{}"),
    output=st.text(max_size=3),
)
TOOL = some(name=st.just("f"), type=st.just("function"), parameters=OBJECT, input_schema=OBJECT, function=OBJECT)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": mostly(TURN),
    "input": st.text(max_size=3) | mostly(TURN),
    "prompt": st.text(max_size=3) | mostly(st.text(max_size=3)),
    "system": st.text(max_size=3),
    "tools": mostly(TOOL),
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | some(type=st.just("any"), name=st.just("f")),
    "options": some(temperature=st.floats(0, 2), num_predict=st.integers(-2, 9), top_p=st.floats(0, 1), stop=ANY),
    "format": OBJECT | st.just("json"),
    "text": some(format=some(type=st.just("json_schema"), schema=OBJECT)),
    "temperature": st.floats(0, 1),
    "stop_sequences": mostly(st.text(max_size=3)),
    "logprobs": st.integers(0, 20) | st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "n": st.integers(1, 3),
}
"""What requests in any of the dialects may hold."""

ASKED = some(**FIELDS)


def ask(model: type[BaseModel], body: Callable[[Any], Json | list[Json]], **least: object) -> Callable[[Json], Any]:
    """Translate a request that has at least these fields."""
    return lambda given: body(validated(model, {**least, **given, "model": "m"}))


ASKS = {
    "anthropic": ask(MessagesRequest, translate_anthropic.chat_body, max_tokens=9),
    "ollama chat": ask(OllamaChatRequest, translate_ollama.chat_body),
    "ollama generate": ask(OllamaGenerateRequest, translate_ollama.generate_body),
    "responses": ask(ResponsesRequest, translate_responses.chat_body),
    "completions": ask(CompletionRequest, chat_bodies),
}


@pytest.mark.parametrize("api", ASKS)
@given(asked=ASKED | OBJECT)
def test_a_request_is_refused_or_becomes_a_chat(api: str, asked: Json) -> None:
    try:
        found = ASKS[api](asked)
    except InvalidInput:
        return
    for body in found if isinstance(found, list) else [found]:
        if body["messages"]:
            validated(ChatCompletionRequest, body)
        json.dumps(body)


CHOICE = some(
    index=st.integers(0, 1),
    delta=some(content=st.text(max_size=3), tool_calls=mostly(CALL)),
    message=some(content=st.text(max_size=3), tool_calls=mostly(CALL)),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
    logprobs=some(content=mostly(some(token=st.text(max_size=2), logprob=st.floats(-9, 0), top_logprobs=st.just([])))),
)
SAID = some(choices=mostly(CHOICE), usage=some(prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9)))


@given(chunks=st.lists(SAID | OBJECT, max_size=4))
def test_a_stream_is_told_or_is_the_engines_failure(chunks: list[Json]) -> None:
    for telling in (message(), response(), ollama(), completion()):
        try:
            telling.begin()
            for chunk in chunks:
                for piece in pieces_of(event(json.dumps(chunk))):
                    telling.take(piece)
            telling.end()
            json.dumps(telling.body(), allow_nan=False)
        except EngineFailed as error:
            json.loads(telling.failed(error).decode().partition("data: ")[2].partition("\n")[0] or "{}")


@given(body=SAID | ANY)
def test_a_whole_answer_is_read_or_is_the_engines_failure(body: object) -> None:
    with suppress(EngineFailed):
        pieces_in(json.dumps(body).encode())
