"""What is told of a worker's log: its last lines, or all that is kept of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.adapters import run_log
from tiermesh.adapters.process import LOG_BYTES
from tiermesh.adapters.run_log import WHOLE_LOG_BYTES, read_last_lines
from tiermesh.protocol.run_folder import RunFolder


@pytest.mark.parametrize(
    ("older", "newer", "lines", "told"),
    [
        (None, None, 0, ""),
        (None, "a\nb\nc\n", 2, "b\nc\n"),
        (None, "a\nb\nunfinished", 2, "b\nunfinished"),
        (None, "a\nb\n", 9, "a\nb\n"),
        (None, "a\nb\n", 0, "a\nb\n"),
        (None, "10%\r20%\rdone\n", 1, "10%\r20%\rdone\n"),
        ("a\nb\n", "c\n", 2, "b\nc\n"),
        ("a\nb\nbe", "gun\n", 2, "b\nbegun\n"),
        ("a\nb\n", "c\n", 0, "a\nb\nc\n"),
        ("a\nb\n", None, 1, "b\n"),
        ("a\n", "", 0, "a\n"),
        (None, "\udcff\n", 0, "\ufffd\n"),
    ],
)
def test_the_last_lines_reach_back_into_what_was_moved_aside(
    tmp_path: Path, older: str | None, newer: str | None, lines: int, told: str
) -> None:
    folder = RunFolder(tmp_path)
    for path, text in ((folder.older_log, older), (folder.log, newer)):
        if text is not None:
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = read_last_lines(folder, lines)
    assert (found.text, found.offset) == (told, len(newer or "")), "who goes on reads the newer file"


def test_all_that_is_kept_fits_and_more_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WHOLE_LOG_BYTES >= 2 * LOG_BYTES
    folder = RunFolder(tmp_path)
    folder.older_log.write_text("first\nsecond\n")
    folder.log.write_text("third\nfourth\n")
    monkeypatch.setattr(run_log, "WHOLE_LOG_BYTES", len("ond\nthird\nfourth\n"))
    assert read_last_lines(folder, 0).text == "third\nfourth\n"
    monkeypatch.setattr(run_log, "WHOLE_LOG_BYTES", len("ird\nfourth\n"))
    assert read_last_lines(folder, 0).text == "fourth\n"


def test_a_log_that_is_moved_aside_while_it_is_read_is_not_told_twice(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log.write_text("once\n")
    folder.older_log.hardlink_to(folder.log)
    assert read_last_lines(folder, 0).text == "once\n"
