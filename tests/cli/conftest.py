"""Commands in this process, against a scripted daemon, far from the user's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.mesh_fake import FakeMesh
from typer.testing import CliRunner, Result

from tiermesh.cli.main import app

Mesh = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working directory, and no mDNS: nothing here may leave this process."""
    for name in ("MESH_URL", "MESH_TOKEN", "MESH_CONFIG", "MESH_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("tiermesh.config.file.user_config_path", lambda _: tmp_path / "user")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake() -> Iterator[FakeMesh]:
    with FakeMesh() as mesh:
        yield mesh


@pytest.fixture
def mesh(fake: FakeMesh) -> Mesh:
    """Run a command against `fake`."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, env={"MESH_URL": fake.url})

    return run


@pytest.fixture
def alone() -> Mesh:
    """Run a command that knows of no daemon."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run
