"""How commands on this machine find a daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tiermesh.daemon import runtime
from tiermesh.errors import StateUnwritable


def test_the_file_is_there_while_the_daemon_runs(tmp_path: Path) -> None:
    runtime.write(tmp_path, port=1, url="http://127.0.0.1:1", node_id="a")
    runtime.write(tmp_path, port=2, url="http://127.0.0.1:2", node_id="a")
    assert [path.name for path in tmp_path.iterdir()] == ["runtime.json"]
    told = json.loads((tmp_path / "runtime.json").read_text())
    assert told == {"pid": os.getpid(), "port": 2, "url": "http://127.0.0.1:2", "node_id": "a"}
    runtime.remove(tmp_path)
    runtime.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateUnwritable, match=f"{tmp_path}/gone can't be written: No such file"):
        runtime.write(tmp_path / "gone", port=1, url="http://127.0.0.1:1", node_id="a")
