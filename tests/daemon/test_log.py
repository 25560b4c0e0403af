"""What is logged, and how it looks."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from tiermesh.config import LogFormat
from tiermesh.daemon import log

FORGED = "one\n2026-01-01 00:00:00,000 INFO    all is well \x1b[31m\ud800"


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    for name in ("tiermesh", "aiohttp.server"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_from_outside_can_not_forge_a_line(form: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(form, "info")
    logging.getLogger("tiermesh.x").info("node %s is up", FORGED)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    if form == "json":
        assert json.loads(said)["message"] == f"node {FORGED} is up"
    else:
        assert "node one\\n2026-01-01" in said


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("text", "info")
    try:
        raise RuntimeError("out of luck")
    except RuntimeError:
        logging.getLogger("tiermesh.x").exception("failed")
    assert capsys.readouterr().err.count("\n") > 3
