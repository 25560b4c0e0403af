"""`mesh model`: needs no daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Mesh

from tiermesh.adapters import model_source
from tiermesh.adapters.model_source import KnownModel, LocalModel
from tiermesh.errors import ModelSourceFailed

TINY = LocalModel("tiny", Path("/models/tiny"), "sha256:0123456789abcdef", "catalogue", 542_000_000, 1000, 2048)


def test_list_says_what_is_here_and_what_could_be(alone: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [KnownModel("tiny", "small", 9, TINY), KnownModel("big", "large", 93_000_000, None)]
    monkeypatch.setattr(model_source, "list_models", lambda: known)
    lines = alone("model", "list").stdout.splitlines()
    assert lines[2].split() == ["tiny", "small", "yes", "542", "MB", "0123456789ab"]
    assert lines[3].split() == ["big", "large", "no", "93.0", "MB", "to", "fetch"]
    rows = json.loads(alone("model", "list", "--json").stdout)
    assert [(row["name"], bool(row["local"])) for row in rows] == [("tiny", True), ("big", False)]


def test_pull_says_where_the_model_is(alone: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []

    def pull(name: str, progress: Callable[..., None] | None = None) -> LocalModel:
        pulled.append(name)
        return TINY

    monkeypatch.setattr(model_source, "pull", pull)
    assert alone("model", "pull", "tiny").stdout == "tiny is at /models/tiny (542 MB)\n"
    assert json.loads(alone("model", "pull", "tiny", "--json").stdout)["digest"] == TINY.digest
    assert pulled == ["tiny", "tiny"]


def test_a_pull_that_fails_is_one_line(alone: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str) -> LocalModel:
        raise ModelSourceFailed("the checksum\nis wrong")

    monkeypatch.setattr(model_source, "pull", pull)
    done = alone("model", "pull", "tiny")
    assert (done.exit_code, done.stderr) == (1, "mesh: the checksum is wrong\n")
