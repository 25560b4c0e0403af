"""`mesh ask`: the answer on stdout, who gave it on stderr."""

from __future__ import annotations

import json

from tests.cli.conftest import Mesh
from tests.mesh_fake import FakeMesh


def test_the_answer_streams_to_stdout_and_who_gave_it_to_stderr(fake: FakeMesh, mesh: Mesh) -> None:
    done = mesh("ask", "What is the capital of France?")
    assert (done.exit_code, done.stdout) == (0, "Paris.\n")
    assert done.stderr.startswith("— fake on alpha, tier 2, 3 tokens, ")
    (body,) = fake.bodies("/api/complete")
    assert body == {"messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": True}


def test_options_arrive_as_given(fake: FakeMesh, mesh: Mesh) -> None:
    mesh("ask", "x", "--model", "m", "--tier", "0", "--temperature", "0", "--max-tokens", "5", "--no-stream")
    (body,) = fake.bodies("/api/complete")
    assert body | {"messages": []} == {"messages": [], "model": "m", "tier": 0, "temperature": 0.0, "max_tokens": 5}


def test_json_is_the_whole_answer(mesh: Mesh) -> None:
    done = mesh("ask", "x", "--json")
    assert json.loads(done.stdout)["node"] == "alpha"
    assert done.stderr == ""


def test_the_question_from_stdin(fake: FakeMesh, mesh: Mesh) -> None:
    mesh("ask", "-", stdin="a long\nquestion\n")
    assert fake.bodies("/api/complete")[0]["messages"][0]["content"] == "a long\nquestion\n"


def test_an_empty_question_is_wrong_use(fake: FakeMesh, mesh: Mesh) -> None:
    assert mesh("ask", " ").exit_code == 2
    assert mesh("ask", "-", stdin="").exit_code == 2
    assert fake.bodies("/api/complete") == []


def test_a_refusal_is_one_line(fake: FakeMesh, mesh: Mesh) -> None:
    fake.failure = (404, {"type": "model_not_found", "message": "no node has 'x'; there are: fake"}, {})
    done = mesh("ask", "x", "--model", "x")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "mesh: no node has 'x'; there are: fake\n")


def test_an_answer_that_breaks_off_is_said(fake: FakeMesh, mesh: Mesh) -> None:
    fake.ending = "error"
    done = mesh("ask", "x")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "Paris.\n", "mesh: the engine died\n")


def test_another_tier_than_the_one_asked_for_is_said(mesh: Mesh) -> None:
    assert "tier 2 in place of 1, " in mesh("ask", "x", "--tier", "1").stderr
    assert "in place of" not in mesh("ask", "x", "--tier", "2").stderr
