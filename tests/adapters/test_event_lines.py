"""Events by their number: whoever was cut off goes on where he was."""

from __future__ import annotations

from pathlib import Path

from tiermesh.adapters.event_lines import READ_BYTES, EventLines

LINE = b'{"event":"warned","message":"%d"}'


def numbers(lines: EventLines) -> list[int]:
    return [number for number, _ in lines.read()]


def test_each_line_has_its_number_for_good(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert numbers(EventLines(path)) == []
    path.write_bytes(b"".join(LINE % n + b"\n" for n in (1, 2)) + b"torn{\n" + LINE % 4)
    lines, later = EventLines(path), EventLines(path, after=1)
    assert list(lines.read()) == [(1, LINE % 1), (2, LINE % 2)]
    assert numbers(later) == [2]
    with path.open("ab") as file:
        file.write(b"\n" + LINE % 5 + b"\n")
    assert numbers(lines) == [4, 5]
    assert numbers(later) == [4, 5]
    assert numbers(EventLines(path, after=99)) == []


def test_a_long_file_is_given_in_parts(tmp_path: Path) -> None:
    """Who reads must not stand still for the events of a week."""
    path = tmp_path / "events.jsonl"
    count = 3 * READ_BYTES // len(LINE)
    path.write_bytes(b"".join(LINE % n + b"\n" for n in range(count)))
    lines, found = EventLines(path), list[int]()
    while lines.has_more():
        some = numbers(lines)
        assert len(some) <= READ_BYTES // len(LINE)
        found += some
    assert found == list(range(1, count + 1))
