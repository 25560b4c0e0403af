"""What a client was told, and what may be asked of others for it: chunk by chunk, as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tiermesh.daemon.resume import GO_ON, MAX_FIRST_BYTES, Told
from tiermesh.daemon.sse import data_of
from tiermesh.errors import EngineFailed, WorkerDied

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 9}
WITH_USAGE = ASKED | {"stream_options": {"include_usage": True}}


def chunk(
    delta: dict[str, Any] | None = None, ids: list[int] | None = None, reason: str | None = None, **head: Any
) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": reason}
    told = {} if ids is None else {"token_ids": ids}
    body = {"id": "a", "created": 1, "model": "m", "choices": [choice | told]} | head
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


ROLE = chunk({"role": "assistant", "content": ""}, [])
END = chunk({}, [0], "stop")
DONE = b"data: [DONE]\n\n"


def usage(prompt: int, completion: int) -> bytes:
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk(choices=[], usage=counted)


def begun(asked: dict[str, Any] = ASKED, *, traced: bool = True, may_switch: bool = False) -> Told:
    told = Told(asked, may_switch=may_switch)
    told.begin("anew", traced=traced)
    return told


def parsed(piece: bytes) -> list[dict[str, Any]]:
    return [json.loads(data) for data in data_of(piece) if data != "[DONE]"]


def test_ids_are_kept_and_taken_out_and_all_else_is_as_it_came() -> None:
    told = begun()
    pieces = [ROLE, chunk({"content": 'a,"token_ids":[9]'}, [4, 5]), END]
    out = [told.pass_on(piece) for piece in pieces]
    assert out == [
        ROLE.replace(b',"token_ids":[]', b""),
        chunk({"content": 'a,"token_ids":[9]'}),
        chunk({}, None, "stop"),
    ]
    assert told.ids == [4, 5, 0]


def test_what_shows_nothing_is_left_out() -> None:
    told = begun()
    assert told.pass_on(ROLE)
    assert told.pass_on(chunk({}, [7])) == b""
    assert told.pass_on(chunk({}, [8]) + chunk({"content": "x"}, [9])) == chunk({"content": "x"})
    assert told.ids == [7, 8, 9]


def test_what_shows_logprobs_shows_something() -> None:
    told = begun()
    choice = {"index": 0, "delta": {}, "logprobs": {"content": [1]}, "finish_reason": None, "token_ids": [3]}
    assert b"logprobs" in told.pass_on(chunk(choices=[choice]))


def test_who_asked_for_ids_gets_them() -> None:
    told = begun(ASKED | {"return_token_ids": True})
    piece = ROLE + chunk({}, [7]) + END
    assert told.pass_on(piece) == piece
    assert told.ids == [7, 0]


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_ids_are_found_however_they_are_written(separators: tuple[str, str], first: bool, line_end: bytes) -> None:
    told = begun()
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    choice = {"token_ids": [5, 6], **choice} if first else {**choice, "token_ids": [5, 6]}
    data = json.dumps({"id": "a", "choices": [choice]}, separators=separators).encode()
    out = told.pass_on(b"data: " + data + line_end * 2)
    assert told.ids == [5, 6]
    assert "token_ids" not in parsed(out)[0]["choices"][0]
    assert parsed(out)[0]["choices"][0]["delta"] == {"content": "x"}


def test_other_engines_chunks_pass_untouched() -> None:
    told = begun(traced=False)
    for piece in (ROLE, chunk({"content": "x"}, [4]), b": still here\n\n", END + DONE):
        assert told.pass_on(piece) == piece
    assert told.done
    assert told.end() == b""


@pytest.mark.parametrize(
    ("pieces", "ways"),
    [
        ([ROLE], ("anew",)),
        ([ROLE, chunk({}, [3])], ("ids",)),
        ([ROLE, chunk({"content": "x"}, [3])], ("ids",)),
        ([ROLE + chunk({"content": "x"}, [3])], ("ids",)),
        ([ROLE, chunk({"content": "x"}, [3]), chunk({"content": "y"})], ()),
        ([ROLE, chunk({"content": "x"}, [3]), END], ("usage",)),
        ([chunk({"content": "x" * MAX_FIRST_BYTES})], ()),
    ],
)
def test_how_a_traced_stream_may_go_on(pieces: list[bytes], ways: tuple[str, ...]) -> None:
    told = begun()
    for piece in pieces:
        told.pass_on(piece)
    assert told.ways() == ways


@pytest.mark.parametrize(
    ("pieces", "ways"),
    [
        ([ROLE], ("anew", "text")),
        ([chunk({"content": "x"})], ("text",)),
        ([ROLE, chunk({"content": "x"})], ("text",)),
        ([ROLE, chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]})], ()),
        ([ROLE, chunk({"content": "x"}), END], ()),
    ],
)
def test_how_another_model_may_go_on(pieces: list[bytes], ways: tuple[str, ...]) -> None:
    told = begun(traced=False, may_switch=True)
    for piece in pieces:
        told.pass_on(piece)
    assert told.ways() == ways


@pytest.mark.parametrize(
    ("more", "said", "ways"),
    [
        ({"n": 2}, "x", ()),
        ({"response_format": {"type": "json_object"}}, '{"x', ()),
        ({"response_format": {"type": "json_object"}}, "", ("anew", "text")),
        ({"response_format": {"type": "text"}}, "x", ("text",)),
        ({"guided_regex": "x+"}, "x", ()),
    ],
)
def test_half_of_what_has_a_shape_is_for_no_other_model(more: dict[str, Any], said: str, ways: tuple[str, ...]) -> None:
    told = begun(ASKED | more, traced=False, may_switch=True)
    told.pass_on(ROLE + (chunk({"content": said}) if said else b""))
    assert told.ways() == ways


def test_another_model_that_begins_is_asked_as_the_first_one_was() -> None:
    told = begun(traced=False, may_switch=True)
    told.pass_on(ROLE)
    assert told.request("text") == ASKED


def test_of_several_answers_one_end_is_not_all() -> None:
    told = begun(ASKED | {"n": 2}, traced=False)
    told.pass_on(chunk({"content": "a"}) + END)
    assert not told.complete
    told.pass_on(chunk(choices=[{"index": 1, "delta": {}, "finish_reason": "length"}]))
    assert told.complete


def test_an_end_without_a_reason_is_given_once() -> None:
    told = begun(traced=False)
    assert told.pass_on(chunk({"content": "a"}) + DONE).endswith(DONE)
    assert told.end() == b""


def test_an_empty_reason_ends_nothing() -> None:
    told = begun(traced=False)
    told.pass_on(chunk({"content": "a"}, reason=""))
    assert not told.complete


@pytest.mark.parametrize("counted", ["many", {}, [1], 1.5])
def test_figures_that_are_none_count_as_nothing(counted: object) -> None:
    told = begun(WITH_USAGE)
    told.pass_on(ROLE + chunk({"content": "a"}, [4]))
    told.begin("ids", traced=True)
    out = told.pass_on(chunk(choices=[], usage={"prompt_tokens": counted, "completion_tokens": 2}))
    assert parsed(out)[0]["usage"] == {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}


def test_what_the_next_source_says_is_in_the_first_ones_name() -> None:
    told = begun(WITH_USAGE)
    told.pass_on(ROLE + chunk({"content": "a"}, [4]))
    assert told.request("ids") == WITH_USAGE | {"resume_token_ids": [4]}
    told.begin("ids", traced=True)
    other: dict[str, Any] = {"id": "b", "created": 2, "model": "n"}
    again = chunk({"role": "assistant", "content": ""}, [], **other)
    out = told.pass_on(again + chunk({"content": "b"}, [5], **other) + chunk({}, [6], **other))
    assert [(c["id"], c["created"], c["model"], c["choices"][0]["delta"]) for c in parsed(out)] == [
        ("a", 1, "m", {"content": "b"})
    ]
    assert told.ids == [4, 5, 6]
    assert told.request("ids")["resume_token_ids"] == [4, 5, 6]
    out = told.pass_on(chunk({}, [0], "stop", **other) + usage(3, 4) + DONE)
    assert [c.get("usage") for c in parsed(out)][-1] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert told.done


def test_ids_that_the_request_began_with_stay_in_front() -> None:
    told = begun(ASKED | {"resume_token_ids": [1, 2]})
    told.pass_on(chunk({"content": "a"}, [4]))
    assert told.request("ids")["resume_token_ids"] == [1, 2, 4]


def test_when_only_the_usage_is_missing_nothing_more_is_generated_or_told() -> None:
    told = begun(WITH_USAGE | {"max_completion_tokens": 50})
    told.pass_on(ROLE + chunk({"content": "a"}, [4]) + END)
    assert not told.complete
    body = told.request("usage")
    assert (body["resume_token_ids"], body["max_tokens"]) == ([4], 1)
    assert "max_completion_tokens" not in body
    told.begin("usage", traced=True)
    out = told.pass_on(chunk({"content": "b"}, [9]) + chunk({}, [], "length") + usage(3, 1) + DONE)
    assert [(c["choices"], c["usage"]["completion_tokens"], c["usage"]["total_tokens"]) for c in parsed(out)] == [
        ([], 2, 5)
    ]


@pytest.mark.parametrize(("asked", "complete"), [(ASKED, True), (WITH_USAGE, False)])
def test_an_answer_without_its_end_is_complete_unless_figures_are_wanted(asked: dict[str, Any], complete: bool) -> None:
    told = begun(asked, traced=False)
    told.pass_on(chunk({"content": "a"}) + END)
    assert told.complete is complete
    told.pass_on(usage(1, 2))
    assert told.complete
    assert told.end() == DONE
    assert told.end() == b""


def test_another_model_reads_what_was_said_and_is_asked_to_go_on() -> None:
    told = begun(ASKED | {"allow_model_switch": True, "return_token_ids": False}, may_switch=True)
    told.pass_on(ROLE + chunk({"content": "a"}, [4]) + chunk({"content": "b"}, [5]))
    told.begin("text", traced=True)
    body = told.request("anew")
    assert body["messages"] == [
        *ASKED["messages"],
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": GO_ON},
    ]
    assert body["max_tokens"] == 7
    assert not {"allow_model_switch", "return_token_ids", "resume_token_ids"} & body.keys()
    out = told.pass_on(chunk({"content": "c"}, [9], id="b", model="n"))
    assert [(c["id"], c["model"]) for c in parsed(out)] == [("a", "n")]
    assert told.request("ids")["resume_token_ids"] == [9], "of the other model"
    out = told.pass_on(chunk({}, [0], "stop") + usage(8, 2))
    assert parsed(out)[-1]["usage"] == {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}


@pytest.mark.parametrize(
    ("data", "kind"),
    [('{"error": {"message": "x"}}', EngineFailed), ('{"error": {"type": "worker_died", "message": "x"}}', WorkerDied)],
)
def test_an_error_in_the_middle_is_raised_and_not_told(data: str, kind: type[Exception]) -> None:
    told = begun()
    told.pass_on(ROLE)
    with pytest.raises(kind, match="x"):
        told.pass_on(b"data: " + data.encode() + b"\n\n")


def test_words_about_errors_are_none() -> None:
    told = begun()
    assert told.pass_on(chunk({"content": '{"error": "no"}'}, [3])) == chunk({"content": '{"error": "no"}'})


@pytest.mark.parametrize("data", [b"data: {", b"data: 3", b"data: nonsense", b"data: [[[[["])
def test_what_cant_be_read_is_a_failure(data: bytes) -> None:
    told = begun()
    told.pass_on(ROLE)
    with pytest.raises(EngineFailed):
        told.pass_on(data + b"\n\n")
