"""Files by their content: whole or not at all, in pieces that go on, never more than fits, never a path."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tiermesh.adapters import blobs as module
from tiermesh.adapters import room
from tiermesh.adapters.blobs import Blobs, safe_name
from tiermesh.adapters.intake import Intake
from tiermesh.errors import BodyTooLarge, DataUnusable, StateUnwritable, Unavailable, WrongOffset

HELLO = hashlib.sha256(b"hello").hexdigest()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise ConnectionResetError("gone")


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return opened(tmp_path)


def opened(tmp_path: Path, cap_bytes: int = 1000) -> Blobs:
    made = Blobs(tmp_path / "data", cap_bytes=cap_bytes)
    made.open()
    return made


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "data").iterdir() if path.is_file())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_it_keeps_what_came_under_its_digest(blobs: Blobs, tmp_path: Path) -> None:
    path = await blobs.put(HELLO, pieces(b"he", b"", b"llo"), None)
    assert (path.read_bytes(), blobs.find(HELLO), files(tmp_path)) == (b"hello", path, [HELLO])
    assert await blobs.put_whole(b"hello") == HELLO


async def test_what_is_not_as_promised_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(DataUnusable, match="was changed or cut off"):
        await blobs.put(HELLO, pieces(b"hell"), None)
    with pytest.raises(ConnectionResetError):
        await blobs.put(HELLO, broken(b"hel"), 5)
    with pytest.raises(DataUnusable, match="empty"):
        await blobs.put(digest(b""), pieces(), 0)
    assert (blobs.find(HELLO), files(tmp_path)) == (None, [])


async def test_what_breaks_off_in_pieces_goes_on_where_it_ended(blobs: Blobs, tmp_path: Path) -> None:
    assert await blobs.put_part(HELLO, pieces(b"he"), offset=0, total_bytes=5) is None
    with pytest.raises(ConnectionResetError):
        await blobs.put_part(HELLO, broken(b"l"), offset=2, total_bytes=5)
    assert (blobs.received(HELLO), blobs.find(HELLO)) == (3, None)
    path = await blobs.put_part(HELLO, pieces(b"l", b"o"), offset=3, total_bytes=5)
    assert path is not None
    assert (path.read_bytes(), blobs.received(HELLO), files(tmp_path)) == (b"hello", 0, [HELLO])
    assert await blobs.put_part(HELLO, broken(), offset=4, total_bytes=5) == path


async def test_an_upload_goes_on_after_a_restart_of_the_daemon(blobs: Blobs, tmp_path: Path) -> None:
    await blobs.put_part(HELLO, pieces(b"hel"), offset=0, total_bytes=5)
    again = opened(tmp_path)
    assert again.received(HELLO) == 3
    assert await again.put_part(HELLO, pieces(b"lo"), offset=3, total_bytes=5) == tmp_path / "data" / HELLO


async def test_a_piece_that_begins_elsewhere_is_refused_unread(blobs: Blobs) -> None:
    await blobs.put_part(HELLO, pieces(b"hel"), offset=0, total_bytes=5)
    for offset in (0, 2, 4):
        with pytest.raises(WrongOffset, match="3 bytes are there"):
            await blobs.put_part(HELLO, broken(), offset=offset, total_bytes=5)
    assert blobs.received(HELLO) == 3


async def test_of_two_who_send_the_same_one_writes(blobs: Blobs) -> None:
    goes_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"hel"
        await goes_on.wait()
        yield b"lo"

    first = asyncio.create_task(blobs.put_part(HELLO, slow(), offset=0, total_bytes=5))
    await asyncio.sleep(0)
    with pytest.raises(WrongOffset, match="somebody else"):
        await blobs.put_part(HELLO, broken(), offset=0, total_bytes=5)
    goes_on.set()
    assert await first == blobs.find(HELLO)


async def test_who_leaves_within_a_piece_leaves_what_came(blobs: Blobs) -> None:
    many = hashlib.sha256(b"x" * 900).hexdigest()
    stop = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 400
        await stop.wait()

    await blobs.put_part(many, pieces(b"x" * 300), offset=0, total_bytes=900)
    task = asyncio.create_task(blobs.put_part(many, endless(), offset=300, total_bytes=900))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    there = blobs.received(many)
    assert there in (300, 700)
    assert await blobs.put_part(many, pieces(b"x" * (900 - there)), offset=there, total_bytes=900)


class Wrong(NamedTuple):
    sent: tuple[bytes, ...]
    total: int
    told: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong((b"hel", b"XX"), 5, "was changed"),
        Wrong((b"hello", b"!"), 5, "more than the 5 bytes"),
    ],
)
async def test_pieces_that_are_not_as_promised_leave_nothing(blobs: Blobs, tmp_path: Path, wrong: Wrong) -> None:
    with pytest.raises(DataUnusable, match=wrong.told):
        await blobs.put_part(HELLO, pieces(*wrong.sent), offset=0, total_bytes=wrong.total)
    assert (files(tmp_path), blobs.received(HELLO)) == ([], 0)


async def test_what_is_too_large_is_refused_before_and_while_it_comes(blobs: Blobs, tmp_path: Path) -> None:
    kept = await blobs.put_whole(b"kept")
    with pytest.raises(BodyTooLarge, match="10,000,000,000 bytes"):
        await blobs.put("0" * 64, broken(), 10_000_000_000)
    with pytest.raises(BodyTooLarge, match="10,000,000,000 bytes"):
        await blobs.put_part("0" * 64, broken(), offset=0, total_bytes=10_000_000_000)
    with pytest.raises(BodyTooLarge, match="larger than the 1,000 bytes"):
        await blobs.put("0" * 64, pieces(b"x" * 1001), None)
    assert files(tmp_path) == [kept]


async def test_a_full_disk_is_told_and_nothing_stays(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.put_part(HELLO, pieces(b"hel"), offset=0, total_bytes=5)
    monkeypatch.setattr(room, "FREE_RESERVE_BYTES", 1 << 60)
    with pytest.raises(BodyTooLarge, match="disk"):
        await blobs.put("0" * 64, broken(), 1)
    with pytest.raises(BodyTooLarge, match="disk"):
        await blobs.put_part(HELLO, broken(), offset=3, total_bytes=5)
    blobs.drop_part(HELLO)
    assert files(tmp_path) == []


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, block: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Intake, "write", full)
    with pytest.raises(StateUnwritable, match="No space left"):
        await blobs.put(HELLO, pieces(b"hello"), None)
    with pytest.raises(StateUnwritable, match="No space left"):
        await blobs.put_part(HELLO, pieces(b"hello"), offset=0, total_bytes=5)
    assert files(tmp_path) == []


async def test_the_oldest_make_room_and_runs_keep_theirs(blobs: Blobs, tmp_path: Path) -> None:
    first, second = await blobs.put_whole(b"1" * 600), await blobs.put_whole(b"2" * 300)
    os.utime(tmp_path / "data" / first, (1, 1))
    linked = blobs.link(second, "../faq.jsonl", tmp_path / "run")
    assert linked == tmp_path / "run" / "faq.jsonl"
    third = await blobs.put_whole(b"3" * 600)
    assert files(tmp_path) == sorted([second, third])
    await blobs.put_whole(b"4" * 900)
    assert blobs.find(second) is None
    assert linked.read_bytes() == b"2" * 300
    assert blobs.link(second, "faq.jsonl", tmp_path / "run") == linked
    assert blobs.link(second, "faq.jsonl", tmp_path / "other") is None


async def test_what_a_job_needs_makes_no_room_also_after_a_restart(blobs: Blobs, tmp_path: Path) -> None:
    old = await blobs.put_whole(b"1" * 600)
    blobs.pin("JOB", [old])
    blobs.pin("OTHER", [old])
    young = await blobs.put_whole(b"2" * 300)
    again = opened(tmp_path)
    with pytest.raises(BodyTooLarge, match="jobs need what is there"):
        await again.put("0" * 64, broken(), 500)
    assert files(tmp_path) == sorted([old, young])
    await again.put_whole(b"3" * 400)
    assert (again.find(old) is None, again.find(young)) == (False, None)
    assert again.unpin("JOB") == frozenset()
    again.remove([old])
    assert again.find(old) is not None
    assert again.unpin("OTHER") == {old}
    assert again.unpin("OTHER") == frozenset()
    again.remove([old])
    assert (again.find(old), opened(tmp_path).owners()) == (None, [])


class Walk:
    """The walk of the disk, held up while something else happens."""

    def __init__(self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end = asyncio.Event(), threading.Event()
        self.threads: set[int] = set()
        loop, walk = asyncio.get_running_loop(), blobs._room.walk

        def held_up() -> list[room.Found]:
            self.threads.add(threading.get_ident())
            found = walk()
            loop.call_soon_threadsafe(self.begun.set)
            assert self.may_end.wait(5)
            return found

        monkeypatch.setattr(blobs._room, "walk", held_up)


async def test_who_needs_or_uses_a_file_while_room_is_made_has_it(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, used, adopted = [await blobs.put_whole(bytes([n]) * 200) for n in range(3)]
    loose = await blobs.put_whole(b"loose" * 40)
    for digest in (needed, used, adopted, loose):
        os.utime(tmp_path / "data" / digest, (1, 1))
    walk = Walk(blobs, monkeypatch)
    coming = asyncio.create_task(blobs.put_whole(b"new" * 100))
    await walk.begun.wait()
    blobs.pin("JOB", [needed])
    assert await asyncio.to_thread(blobs.link, used, "faq.jsonl", tmp_path / "run")
    (tmp_path / "again").write_bytes(bytes([2]) * 200)
    assert await blobs.adopt(tmp_path / "again") == (adopted, 200)
    walk.may_end.set()
    assert await coming in files(tmp_path)
    assert [blobs.find(digest) is not None for digest in (needed, used, adopted, loose)] == [True, True, True, False]


async def test_the_loop_goes_on_while_the_disk_is_walked_and_files_are_removed(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed_by: set[int] = set()
    unlink = Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == room.GONE:
            removed_by.add(threading.get_ident())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    walk = Walk(blobs, monkeypatch)
    walk.may_end.set()
    old = await blobs.put_whole(b"1" * 600)
    await blobs.put_whole(b"2" * 600)
    assert blobs.find(old) is None
    blobs.remove([digest(b"2" * 600)])
    assert files(tmp_path) == []
    await blobs.tidy()
    assert not list((tmp_path / "data" / room.GONE).iterdir())
    assert removed_by
    assert threading.get_ident() not in walk.threads | removed_by


async def test_what_was_on_its_way_out_goes_at_the_next_start(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "data" / room.GONE / "abcd").write_bytes(b"half a gigabyte")
    opened(tmp_path)
    assert not list((tmp_path / "data" / room.GONE).iterdir())


async def test_what_breaks_off_gives_its_room_back(blobs: Blobs, tmp_path: Path) -> None:
    for n in range(3):
        with pytest.raises(ConnectionResetError):
            await blobs.put(digest(bytes([n])), broken(b"x" * 900), 900)
    assert files(tmp_path) == []
    await blobs.put_whole(b"y" * 900)


async def test_what_is_kept_takes_the_place_of_a_file_that_the_disk_has_spoilt(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"hello")
    blobs = Blobs(tmp_path / "blobs")
    blobs.open()
    await blobs.put_whole(b"hello")
    (tmp_path / "blobs" / HELLO).write_bytes(b"hallo")
    blobs.doubt([HELLO])
    assert await blobs.adopt(tmp_path / "source") == (HELLO, 5)
    assert (tmp_path / "blobs" / HELLO).read_bytes() == b"hello"


async def test_a_file_of_this_machine_is_kept_without_a_copy(blobs: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "tensors"
    source.write_bytes(b"hello")
    assert await blobs.adopt(source) == await blobs.adopt(source) == (HELLO, 5)
    source.unlink()
    assert (tmp_path / "data" / HELLO).read_bytes() == b"hello"
    with pytest.raises(FileNotFoundError):
        await blobs.adopt(source)


async def test_what_a_dead_daemon_left_is_removed_and_forgotten_uploads_too(blobs: Blobs, tmp_path: Path) -> None:
    await blobs.put_part(HELLO, pieces(b"hel"), offset=0, total_bytes=5)
    (tmp_path / "data" / ".coming-1234").write_bytes(b"half")
    assert opened(tmp_path).received(HELLO) == 3
    assert files(tmp_path) == [f".part-{HELLO}"]
    long_ago = time.time() - module.PART_KEPT_S - 1
    os.utime(tmp_path / "data" / f".part-{HELLO}", (long_ago, long_ago))
    await blobs.tidy()
    assert files(tmp_path) == []


async def test_not_everybody_at_once(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PARTS", 1)
    await blobs.put_part(HELLO, pieces(b"hel"), offset=0, total_bytes=5)
    with pytest.raises(Unavailable, match="other uploads"):
        await blobs.put_part("0" * 64, broken(), offset=0, total_bytes=5)
    await blobs.put_part(HELLO, pieces(b"lo"), offset=3, total_bytes=5)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
async def test_a_folder_that_is_read_only_is_told(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "data").chmod(0o500)
    try:
        with pytest.raises(StateUnwritable, match="Permission denied"):
            await blobs.put(HELLO, pieces(b"hello"), None)
        with pytest.raises(StateUnwritable, match="Permission denied"):
            await blobs.put_part(HELLO, pieces(b"hello"), offset=0, total_bytes=5)
    finally:
        (tmp_path / "data").chmod(0o700)


async def test_a_folder_that_is_gone_is_told(blobs: Blobs, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data" / ".pins")
    with pytest.raises(StateUnwritable, match="can't be written"):
        blobs.pin("JOB", [HELLO])


@pytest.mark.parametrize("name", ["../x", "", "A" * 64, HELLO + "/..", HELLO + "\n"])
def test_only_a_digest_finds_anything(blobs: Blobs, name: str) -> None:
    assert (blobs.find(name), blobs.received(name)) == (None, 0)


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


def test_a_run_that_cannot_be_given_its_data_says_why(tmp_path: Path) -> None:
    """A full disk, a folder that is none: never a traceback for whoever submits."""
    blobs = opened(tmp_path)
    content = b"rows"
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "data" / sha256).write_bytes(content)
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(StateUnwritable):
        blobs.link(sha256, "faq.jsonl", tmp_path / "run")
