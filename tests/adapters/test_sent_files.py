"""Files under their owners' names: kept, told, forgotten, and what a dead daemon leaves."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tiermesh.adapters import sent_files
from tiermesh.adapters.sent_files import SentFile, SentFiles
from tiermesh.errors import BodyTooLarge, InvalidInput
from tiermesh.protocol.openai_tuning import file_id


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken() -> AsyncIterator[bytes]:
    yield b"half"
    raise ConnectionResetError


def entry(name: str = "a.jsonl", at: float = 1.0) -> SentFile:
    return SentFile(
        id=file_id("fine-tune", name, "00"), name=name, purpose="fine-tune", sha256="00", size_bytes=3, created_at=at
    )


@pytest.fixture
def files(tmp_path: Path) -> SentFiles:
    made = SentFiles(tmp_path / "files")
    made.open()
    return made


def reopened(tmp_path: Path) -> SentFiles:
    made = SentFiles(tmp_path / "files")
    made.open()
    return made


def test_entries_outlive_the_daemon_the_newest_first(tmp_path: Path, files: SentFiles) -> None:
    old, new = files.add(entry("old", 1.0)), files.add(entry("new", 2.0))
    assert reopened(tmp_path).all() == [new, old]
    assert files.remove(old.id) == old
    assert files.remove(old.id) is None
    assert reopened(tmp_path).all() == [new]


def test_the_same_file_again_is_the_first_one(files: SentFiles) -> None:
    assert files.add(entry(at=1.0)) == files.add(entry(at=2.0))
    assert files.all()[0].created_at == 1.0


def test_an_entry_that_can_not_be_read_hides_no_other(tmp_path: Path, files: SentFiles) -> None:
    kept = files.add(entry())
    (tmp_path / "files" / "file-torn.json").write_text('{"id": "fi')
    (tmp_path / "files" / "file-other.json").write_text('{"id": "x", "later": 1}')
    assert reopened(tmp_path).all() == [kept]


def test_there_is_room_for_so_many(files: SentFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_files, "ENTRIES_LIMIT", 1)
    files.add(entry("a"))
    with pytest.raises(InvalidInput, match="delete some first"):
        files.add(entry("b"))


async def test_what_comes_is_hashed_on_its_way(files: SentFiles) -> None:
    staged = await files.stage(chunks(b"ab", b"c"))
    assert (staged.sha256, staged.size_bytes) == (hashlib.sha256(b"abc").hexdigest(), 3)
    assert staged.path.read_bytes() == b"abc"
    files.discard(staged.path)
    assert not staged.path.exists()


async def test_nothing_is_left_of_what_broke_off_or_was_too_large(
    tmp_path: Path, files: SentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionResetError):
        await files.stage(broken())
    monkeypatch.setattr(sent_files, "LIMIT_BYTES", 4)
    with pytest.raises(BodyTooLarge, match="PUT /api/data"):
        await files.stage(chunks(b"abc", b"de"))
    assert list((tmp_path / "files").iterdir()) == []


async def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, files: SentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Any = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BodyTooLarge, match="disk is full"):
        await files.stage(chunks(b"abc"))
    assert list((tmp_path / "files").iterdir()) == []


async def test_a_dead_daemons_half_is_removed(tmp_path: Path, files: SentFiles) -> None:
    staged = await files.stage(chunks(b"abc"))
    reopened(tmp_path)
    assert not staged.path.exists()
