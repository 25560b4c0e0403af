"""Datasets by their content: whole or not at all, never more than there is room for, never a path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tiermesh.adapters import data_shelf
from tiermesh.adapters.data_shelf import DataShelf, safe_name
from tiermesh.errors import BodyTooLarge, DataUnusable


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise ConnectionResetError("gone")


@pytest.fixture
def shelf(tmp_path: Path) -> DataShelf:
    made = DataShelf(tmp_path / "data", cap_bytes=1000)
    made.open()
    return made


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "data").iterdir())


async def test_it_keeps_what_came_under_its_digest(shelf: DataShelf, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"hello").hexdigest()
    path = await shelf.put(digest, pieces(b"he", b"", b"llo"), None)
    assert (path.read_bytes(), shelf.find(digest), files(tmp_path)) == (b"hello", path, [digest])
    assert await shelf.put_whole(b"hello") == digest


async def test_what_is_not_as_promised_leaves_nothing(shelf: DataShelf, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"hello").hexdigest()
    with pytest.raises(DataUnusable, match="was changed or cut off"):
        await shelf.put(digest, pieces(b"hell"), None)
    with pytest.raises(ConnectionResetError):
        await shelf.put(digest, broken(b"hel"), 5)
    with pytest.raises(DataUnusable, match="empty"):
        await shelf.put(hashlib.sha256(b"").hexdigest(), pieces(), 0)
    assert (shelf.find(digest), files(tmp_path)) == (None, [])


async def test_what_is_too_large_is_refused_before_and_while_it_comes(shelf: DataShelf, tmp_path: Path) -> None:
    with pytest.raises(BodyTooLarge, match="10,000,000,000 bytes"):
        await shelf.put("0" * 64, pieces(b"x"), 10_000_000_000)
    with pytest.raises(BodyTooLarge, match="larger than the 1,000 bytes"):
        await shelf.put("0" * 64, pieces(b"x" * 1001), None)
    assert files(tmp_path) == []


async def test_a_full_disk_is_told(shelf: DataShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_shelf, "FREE_RESERVE_BYTES", 1 << 60)
    with pytest.raises(BodyTooLarge, match="disk"):
        await shelf.put("0" * 64, pieces(b"x"), 1)


async def test_the_oldest_make_room_and_runs_keep_theirs(shelf: DataShelf, tmp_path: Path) -> None:
    first, second = await shelf.put_whole(b"1" * 600), await shelf.put_whole(b"2" * 300)
    os.utime(tmp_path / "data" / first, (1, 1))
    linked = shelf.link(second, "../faq.jsonl", tmp_path / "run")
    assert linked == tmp_path / "run" / "faq.jsonl"
    third = await shelf.put_whole(b"3" * 600)
    assert files(tmp_path) == sorted([second, third])
    await shelf.put_whole(b"4" * 900)
    assert shelf.find(second) is None
    assert linked.read_bytes() == b"2" * 300
    assert shelf.link(second, "faq.jsonl", tmp_path / "run") == linked
    assert shelf.link(second, "faq.jsonl", tmp_path / "other") is None


def test_what_a_dead_daemon_left_is_removed(shelf: DataShelf, tmp_path: Path) -> None:
    (tmp_path / "data" / ".coming-1234").write_bytes(b"half")
    shelf.open()
    assert files(tmp_path) == []


NAMES = [
    ("faq.jsonl", "faq.jsonl"),
    ("/etc/passwd", "passwd"),
    ("..\\..\\boot.ini", "boot.ini"),
    ("..", "data"),
    ("a b\n.csv", "a_b_.csv"),
    (".hidden.json", "hidden.json"),
    ("x" * 200 + ".jsonl", "x" * 74 + ".jsonl"),
]


@pytest.mark.parametrize(("given", "kept"), NAMES)
def test_a_name_does_no_harm_and_keeps_its_ending(given: str, kept: str) -> None:
    assert safe_name(given) == kept


def test_a_long_name_of_wide_characters_is_a_file_name(tmp_path: Path) -> None:
    name = safe_name("\N{CJK UNIFIED IDEOGRAPH-20000}" * 80 + ".jsonl")
    assert name.endswith(".jsonl")
    (tmp_path / name).write_bytes(b"")
