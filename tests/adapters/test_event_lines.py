"""Events by their number: whoever was cut off goes on where he was."""

from __future__ import annotations

from pathlib import Path

from tiermesh.adapters.event_lines import ATTEMPT, READ_BYTES, EventLines
from tiermesh.protocol.training_events import AttemptBegun, to_line

FIRST = ATTEMPT
"""What the ids of the first attempt's lines lie above."""
LINE = b'{"event":"warned","message":"%d"}'


def numbers(lines: EventLines) -> list[int]:
    return [number for number, _ in lines.read()]


def test_each_line_has_its_number_for_good(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert numbers(EventLines(path)) == []
    path.write_bytes(b"".join(LINE % n + b"\n" for n in (1, 2)) + b"torn{\n" + LINE % 4)
    lines, later = EventLines(path), EventLines(path, after=FIRST + 1)
    assert list(lines.read()) == [(FIRST + 1, LINE % 1), (FIRST + 2, LINE % 2)]
    assert numbers(later) == [FIRST + 2]
    with path.open("ab") as file:
        file.write(b"\n" + LINE % 5 + b"\n")
    assert numbers(lines) == [FIRST + 4, FIRST + 5]
    assert numbers(later) == [FIRST + 4, FIRST + 5]
    assert numbers(EventLines(path, after=FIRST + 99)) == []


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
    assert found == list(range(FIRST + 1, FIRST + count + 1))


def begun(number: int) -> bytes:
    return to_line(AttemptBegun(number=number))


def test_copied_lines_keep_their_ids_through_all_attempts(tmp_path: Path) -> None:
    """A reader goes on in any later attempt's file with the last id that it has."""
    one, two, three = (tmp_path / f"{number}.jsonl" for number in (1, 2, 3))
    first = b"".join(LINE % n + b"\n" for n in range(1, 6))
    one.write_bytes(first)
    copied = b"".join(LINE % n + b"\n" for n in range(1, 4))
    second = copied + begun(2) + LINE % 4 + b"\n" + LINE % 5 + b"\n" + LINE % 6 + b"\n"
    two.write_bytes(second)
    three.write_bytes(b"".join(second.splitlines(keepends=True)[:5]) + begun(3) + LINE % 5 + b"\n")
    assert numbers(EventLines(one)) == [FIRST + n for n in range(1, 6)]
    assert numbers(EventLines(two)) == [FIRST + 1, FIRST + 2, FIRST + 3, *(2 * ATTEMPT + n for n in range(4, 8))]
    assert numbers(EventLines(three)) == [
        *(FIRST + 1, FIRST + 2, FIRST + 3, 2 * ATTEMPT + 4, 2 * ATTEMPT + 5),
        *(3 * ATTEMPT + 6, 3 * ATTEMPT + 7),
    ]
    assert numbers(EventLines(three, after=FIRST + 2))[0] == FIRST + 3, "copied, but not seen yet"
    assert numbers(EventLines(three, after=FIRST + 5))[0] == 2 * ATTEMPT + 4, "lost with the first node, but seen"
    assert numbers(EventLines(three, after=2 * ATTEMPT + 7)) == [3 * ATTEMPT + 6, 3 * ATTEMPT + 7]


def test_reading_goes_on_from_a_place(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(LINE % 1 + b"\n" + begun(2) + LINE % 3)
    lines = EventLines(path)
    assert numbers(lines) == [FIRST + 1, 2 * ATTEMPT + 2]
    with path.open("ab") as file:
        file.write(b"\n")
    assert numbers(EventLines(path, 2 * ATTEMPT + 2, lines.place)) == [2 * ATTEMPT + 3]
    path.write_bytes(LINE % 1 + b"\n")
    assert numbers(EventLines(path, 0, lines.place)) == [FIRST + 1], "another file by now"
