from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tiermesh.errors import BadData
from tiermesh.kernel.training.data import readers
from tiermesh.kernel.training.data.records import BadRecord

A, B = {"text": "one"}, {"text": 'zwölf, "x"\nnext 🦊'}


def parquet(records: list[dict[str, Any]]) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file.getvalue()


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(path: Path, form: str = "auto") -> tuple[str, str, list[tuple[int, Any]]]:
    """Format, unit, and each record or the reason why there is none, with its place."""
    found = readers.detect(path) if form == "auto" else form
    reading = readers.read(path, found)
    told: list[tuple[int, Any]] = []
    for line, raw in reading.records:
        try:
            told.append((line, readers.decoded(raw)))
        except BadRecord as bad:
            told.append((line, str(bad)))
    assert reading.share() == 1.0
    return found, reading.unit, told


CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

GOOD: Mapping[str, tuple[str, bytes, str, list[tuple[int, Any]]]] = {
    "jsonl": ("a.jsonl", lines(A, B), "jsonl", [(1, A), (2, B)]),
    "jsonl, blank lines and no last newline": (
        "a.jsonl",
        b"\n" + lines(A) + b" \n" + lines(B)[:-1],
        "jsonl",
        [(2, A), (4, B)],
    ),
    "jsonl with a mark of its bytes' order": ("a.jsonl", b"\xef\xbb\xbf" + lines(A), "jsonl", [(1, A)]),
    "jsonl by content alone": ("data", lines(A, B), "jsonl", [(1, A), (2, B)]),
    "jsonl called json": ("a.json", lines(A, B), "jsonl", [(1, A), (2, B)]),
    "jsonl with windows' lines": ("a.jsonl", lines(A).replace(b"\n", b"\r\n") * 2, "jsonl", [(1, A), (2, A)]),
    "json list": ("a.json", json.dumps([A, B]).encode(), "json", [(1, A), (2, B)]),
    "json list called jsonl": ("a.jsonl", json.dumps([A, B], indent=1).encode(), "json", [(1, A), (2, B)]),
    "json with its list inside": (
        "a.json",
        json.dumps({"v": 1, "data": [A, B]}, indent=1).encode(),
        "json",
        [(1, A), (2, B)],
    ),
    "json on one line": ("a.json", json.dumps({"data": [A, B]}).encode(), "json", [(1, A), (2, B)]),
    "one record, one line": ("a.json", lines(A), "json", [(1, A)]),
    "json of one record": (
        "a.json",
        json.dumps({"messages": CONVERSATION}, indent=1).encode(),
        "json",
        [(1, {"messages": CONVERSATION})],
    ),
    "csv": (
        "a.csv",
        b'text,n\none,1\n"zw\xc3\xb6lf, ""x""\nnext \xf0\x9f\xa6\x8a",2\n',
        "csv",
        [(2, {**A, "n": "1"}), (3, {**B, "n": "2"})],
    ),
    "csv after a long cell": ("a.csv", b'text\n"a\nb\nc"\none\n', "csv", [(2, {"text": "a\nb\nc"}), (5, A)]),
    "csv with semicolons": ("a.csv", b"prompt;completion\na,b;c\n", "csv", [(2, {"prompt": "a,b", "completion": "c"})]),
    "tsv": ("a.tsv", b"prompt\tcompletion\na,b\tc\n", "csv", [(2, {"prompt": "a,b", "completion": "c"})]),
    "csv with a conversation": (
        "a.csv",
        b'messages\n"[{""role"": ""user"", ""content"": ""a""}]"\n',
        "csv",
        [(2, {"messages": [{"role": "user", "content": "a"}]})],
    ),
    "csv with an empty cell": ("a.csv", b"text,more\none,\n", "csv", [(2, A)]),
    "parquet": ("a.parquet", parquet([A, B]), "parquet", [(1, A), (2, B)]),
    "parquet by content": (
        "a.bin",
        parquet([{"messages": CONVERSATION}]),
        "parquet",
        [(1, {"messages": CONVERSATION})],
    ),
    "text": ("a.txt", b"one\n", "text", [(1, A)]),
    "text by content": ("README", "größe\n\nx".encode(), "text", [(1, {"text": "größe\n\nx"})]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_is_told_by_its_content_and_then_by_its_name(name: str, tmp_path: Path) -> None:
    file, content, form, records = GOOD[name]
    (tmp_path / file).write_bytes(content)
    assert read(tmp_path / file) == (
        form,
        {"jsonl": "line", "csv": "line", "text": "line", "json": "item", "parquet": "row"}[form],
        records,
    )


BAD_RECORDS: Mapping[str, tuple[str, bytes, dict[int, str]]] = {
    "a line that is no JSON": ("a.jsonl", lines(A) + b"{oops\n" + lines(B), {2: "is not JSON"}),
    "a first line that is no JSON": ("a.jsonl", b'{"text": "one"\n' + lines(B), {1: "is not JSON"}),
    "a line cut off": ("a.jsonl", lines(A) + lines(B)[:-5], {2: "is not JSON"}),
    "a line of bytes": ("a.jsonl", lines(A) + b'{"text": "\xff\xfe"}\n' + lines(B), {2: "is not JSON"}),
    "half a surrogate": ("a.jsonl", lines(A) + b'{"text": "\\ud800"}\n', {2: "is not JSON"}),
    "nested without end": ("a.jsonl", lines(A) + b"[" * 100_000 + b"\n", {2: "is"}),
    "a row with too many columns": ("a.csv", b"text,n\none,1,2\none,1\n", {2: "has 3 columns, and line 1 names 2"}),
    "a row with too few columns": ("a.csv", b"text,n\none\none,1\n", {2: "has 1 columns, and line 1 names 2"}),
    "text that is no UTF-8": ("a.txt", b"caf\xe9", {1: "is not valid UTF-8"}),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_costs_itself_alone(name: str, tmp_path: Path) -> None:
    file, content, expected = BAD_RECORDS[name]
    (tmp_path / file).write_bytes(content)
    _, _, told = read(tmp_path / file)
    bad = {line: what for line, what in told if isinstance(what, str)}
    assert bad.keys() == expected.keys()
    assert all(bad[line].startswith(reason) for line, reason in expected.items())
    assert all(isinstance(what, Mapping) for line, what in told if line not in expected)


UNREADABLE: Mapping[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "is empty"),
    "blank": ("a.jsonl", b" \n\n", "is empty"),
    "gzip": ("a.jsonl.gz", b"\x1f\x8b\x08\x00", "is compressed (gzip); unpack it first"),
    "zstandard": ("a.zst", b"\x28\xb5\x2f\xfd\x00", "is compressed (Zstandard); unpack it first"),
    "zip": ("a.zip", b"PK\x03\x04", "is an archive (zip); unpack it first"),
    "utf-16": ("a.csv", "text\none\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "binary": ("a.bin", b"\x7fELF\x00\x00", "is of no known format"),
    "broken JSON": ("a.json", b'[{"text": "one"}', "is not JSON"),
    "JSON without records": ("a.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "holds no list of records"),
    "no parquet": ("a.parquet", b"PAR1 and then nothing", "is not Parquet"),
    "parquet by name alone": ("a.parquet", b"\x00\x01\x02", "is of no known format"),
    "csv that names a column twice": ("a.csv", b"text,text\na,b\n", "line 1 names a column twice"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_can_not_be_read_says_why(name: str, tmp_path: Path) -> None:
    file, content, reason = UNREADABLE[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BadData) as failed:
        read(tmp_path / file)
    assert reason in str(failed.value)
    assert file in str(failed.value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a folder; name the file in it"),
    ],
)
def test_what_is_no_file_is_said(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(BadData, match=reason):
        readers.detect(tmp_path / "x")


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(lines(A))
    with pytest.raises(BadData, match="no reader for 'xml'; there are csv, json, jsonl, parquet, text, toml"):
        readers.format_of(tmp_path / "a", "xml", {"toml": lambda path: []})


def test_a_plugin_reads_what_is_not_built_in(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one two")
    reading = readers.read(tmp_path / "a", "words", {"words": lambda p: ({"text": w} for w in p.read_text().split())})
    assert list(reading.records) == [(1, {"text": "one"}), (2, {"text": "two"})]


def test_a_long_text_is_cut_where_paragraphs_end_and_loses_nothing(tmp_path: Path) -> None:
    paragraphs = [f"{n} " + "word " * 150 for n in range(200)]
    text = "\n\n".join(paragraphs)
    (tmp_path / "a.txt").write_text(text)
    _, _, told = read(tmp_path / "a.txt")
    assert len(told) > 10
    assert "\n\n".join(record["text"] for _, record in told) == text
    assert all(text.split("\n")[line - 1].startswith(record["text"][:5]) for line, record in told)


@pytest.mark.parametrize("word", ["ab ", "ä", "🦊"])
def test_a_text_of_one_line_is_cut_between_words_or_at_least_characters(word: str, tmp_path: Path) -> None:
    text = word * 60_000
    (tmp_path / "a.txt").write_text(text)
    _, _, told = read(tmp_path / "a.txt")
    assert len(told) > 1
    assert "".join(record["text"] for _, record in told) == text


def test_a_big_file_is_read_as_it_is_consumed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(A) * 50_000)
    reading = readers.read(tmp_path / "a.jsonl", "jsonl")
    for _ in range(1000):
        next(reading.records)
    assert 0 < reading.share() < 0.1
    reading.records.close()
