"""`mesh model`: needs no daemon."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import tiny_model
from tests.cli.conftest import Mesh
from tests.training_runs import write_model_stub

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


def test_list_without_an_answer_is_of_this_machine(alone: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "list_models", lambda: [KnownModel("tiny", "small", 9, TINY)])
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        done = alone("model", "list", "--url", url)
        assert (done.exit_code, "tiny" in done.stdout) == (0, True)
        assert f"what the mesh has trained is not known, because no daemon answers at {url}" in done.stderr
        assert [row["name"] for row in json.loads(alone("model", "list", "--json", "--url", url).stdout)] == ["tiny"]


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


@pytest.mark.timeout(60)
def test_inspect_shows_layers_and_what_each_method_would_train(alone: Mesh, tmp_path: Path) -> None:
    folder = tiny_model.build_folder(tmp_path / "tiny")
    shown = alone("model", "inspect", str(folder), "--rank", "4").stdout
    assert "LlamaForCausalLM, 2 blocks, 46,240 parameters" in shown
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert lines["model.layers.*.self_attn.q_proj"][1:] == ["Linear", "32x32", "2", "2,048", "4.4%", "yes"]
    assert lines["lm_head"][-1] != "yes"
    assert lines["lora"][1:] == ["4,352", "8.60%"]
    told = json.loads(alone("model", "inspect", str(folder), "--json").stdout)
    assert [method["method"] for method in told["methods"]] == ["full_finetune", "lora", "qlora"]


@pytest.mark.timeout(60)
def test_inspect_of_what_is_no_language_model_is_one_sentence(alone: Mesh, tmp_path: Path) -> None:
    folder = write_model_stub(tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "nothing", "max_position_embeddings": 64}')
    failed = alone("model", "inspect", str(folder))
    assert failed.exit_code != 0
    assert "holds no language model" in failed.stderr
    assert "Traceback" not in failed.stderr
