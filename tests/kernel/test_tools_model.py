"""Tools and JSON with the real small model, when it is on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.kernel.workers import WorkerProcess, start_worker, stop_worker, wait_until_ready

from tiermesh.adapters.model_source import resolve
from tiermesh.errors import UnknownModel

pytestmark = pytest.mark.model
MODEL = "smollm2:135m"
QUESTION = "What is the weather in Paris?"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "name of the city", "maxLength": 40}},
            "required": ["city"],
        },
    },
}
ANIMAL = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
    },
    "required": ["name", "legs"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    try:
        folder = resolve(MODEL).path
    except UnknownModel as error:
        pytest.skip(str(error))
    worker = start_worker(folder, tmp_path_factory.mktemp("w") / "s")
    try:
        wait_until_ready(worker)
        yield worker
    finally:
        stop_worker(worker)


@pytest.mark.parametrize("stream", [False, True])
async def test_it_calls_a_tool_when_it_likes(real: WorkerProcess, stream: bool) -> None:
    """Of its own accord it begins a call; that it is as defined is the grammar's work."""
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    parameters: dict[str, Any] = {"tools": [strict], "temperature": 0.0, "max_tokens": 64}
    if stream:
        events = await real.stream("Get the weather for Berlin.", **parameters)
        pieces = [piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", [])]
        assert pieces[0]["function"]["name"] == "get_weather"
        arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    else:
        (choice,) = (await real.ask("Get the weather for Berlin.", **parameters))["choices"]
        arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"city": "Berlin"}


@pytest.mark.parametrize("parallel", [False, True])
async def test_it_calls_a_tool_when_it_must(real: WorkerProcess, parallel: bool) -> None:
    parameters: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": parallel}
    (choice,) = (await real.ask(QUESTION, **parameters, temperature=0.0, max_tokens=200))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    first = choice["message"]["tool_calls"][0]["function"]
    assert (first["name"], json.loads(first["arguments"])) == ("get_weather", {"city": "Paris"})


async def test_it_answers_in_json(real: WorkerProcess) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": ANIMAL, "strict": True}}
    answer = await real.ask("Describe an animal in JSON.", response_format=wanted, n=8, seed=1)
    animals = [json.loads(choice["message"]["content"]) for choice in answer["choices"]]
    assert all(set(animal) == {"name", "legs"} for animal in animals)
    assert len({animal["name"] for animal in animals}) > 1


async def test_any_json_object(real: WorkerProcess) -> None:
    parameters: dict[str, Any] = {"temperature": 0.0, "max_tokens": 300, "response_format": {"type": "json_object"}}
    (choice,) = (await real.ask('Answer with {"capital": ...} in JSON: France', **parameters))["choices"]
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["message"]["content"]), dict)
