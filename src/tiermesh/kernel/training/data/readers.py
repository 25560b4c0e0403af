"""Files become records as they are written, each with where it stands. What they mean is said in `records`.

A reader gives what it can of a file and names what it can't: a bad record costs itself alone. A file that can't be
read at all raises `BadData`. All but JSON in one piece are read as they are consumed, in bounded memory.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec

from tiermesh.errors import BadData, EnvironmentUnfit
from tiermesh.kernel.training.data.records import MAX_RECORD_CHARACTERS, BadRecord

SNIFFED_BYTES = 65_536
"""Read to tell a format: more than the first record of nearly any file."""
MAX_LINE_BYTES = 4 * MAX_RECORD_CHARACTERS
"""UTF-8 takes at most 4 bytes a character."""
MAX_JSON_BYTES = 2_000_000_000
"""A JSON document is read whole, and takes several times its size in memory."""
TEXT_BLOCK_CHARACTERS = 8192
"""Plain text is cut into records of about this size: some 2,000 tokens, so that a row can be filled from one and a
small file still has enough of them to hold some out."""
PARQUET_ROWS = 512
"""Converted at once."""
DELIMITERS = ",\t;|"

_MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b": "is compressed (gzip); unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed (Zstandard); unpack it first",
    b"BZh": "is compressed (bzip2); unpack it first",
    b"PK\x03\x04": "is an archive (zip); unpack it first",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """An opened file. `unit` is what its records are counted in; `share` says how much of it has been read, 0 to 1.

    A record is an object with fields, or its JSON, or a `BadRecord`.
    """

    unit: str
    records: Generator[tuple[int, object], None, None]
    share: Callable[[], float]


Reader = Callable[[Path], Iterable[object]]
"""What a plugin is: from a file to its records, each a mapping of fields."""
NO_PLUGINS: Mapping[str, Reader] = MappingProxyType({})


def detect(path: Path) -> str:
    """The format of a file, by what it begins with and then by its name. Raises `BadData` for what is none."""
    head = _head(path)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise BadData(f"{path} {what}")
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    named = _SUFFIXES.get(path.suffix.lower())
    if named in {"csv", "text"}:
        return named
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "jsonl" if named == "jsonl" or _has_lines(text, named, whole=len(head) < SNIFFED_BYTES) else "json"
    if named is not None and named != "parquet":
        return named
    if b"\0" in head:
        raise BadData(f"{path} is of no known format; known are {', '.join(sorted(READERS))}")
    return "text"


def format_of(path: Path, wanted: str, plugins: Mapping[str, Reader]) -> str:
    """The format to read a file in: the one that is wanted, or with `auto` the one that it has. Raises `BadData`."""
    if wanted == "auto":
        return detect(path)
    if wanted not in {*READERS, *plugins}:
        raise BadData(f"there is no reader for {wanted!r}; there are {', '.join(sorted({*READERS, *plugins}))}")
    _head(path)
    return wanted


def read(path: Path, form: str, plugins: Mapping[str, Reader] = NO_PLUGINS) -> Reading:
    """Open a file with the reader of a format. Raises `BadData` while it is read, if not before."""
    if form in READERS:
        return READERS[form](path)
    return Reading("record", _numbered(plugins[form](path)), lambda: 0.0)


def _numbered(records: Iterable[object]) -> Generator[tuple[int, object], None, None]:
    yield from enumerate(records, 1)


def decoded(raw: object) -> object:
    """A record's fields: JSON is decoded where it is tokenised, not where it is read. Raises `BadRecord`."""
    if isinstance(raw, BadRecord):
        raise raw
    if not isinstance(raw, bytes):
        return raw
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"is not JSON: {error}") from None
    except RecursionError:
        raise BadRecord("is nested too deeply") from None


_DECODER = msgspec.json.Decoder()


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
    except FileNotFoundError:
        raise BadData(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise BadData(f"{path} is a folder; name the file in it") from None
    except OSError as error:
        raise BadData(f"{path} can't be read: {error.strerror}") from error
    if not head.strip():
        raise BadData(f"{path} is empty")
    return head


def _has_lines(text: bytes, named: str | None, *, whole: bool) -> bool:
    """Is this one JSON document a line, rather than one in all?"""
    line, ends, rest = text.partition(b"\n")
    if not ends or (whole and not rest.strip()):
        return named != "json"
    try:
        _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A broken first line, unless this is one document over many lines.
        return not line.rstrip().endswith((b"{", b"[", b",")) and (not whole or not _is_json(text))
    return True


def _is_json(text: bytes) -> bool:
    try:
        _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _jsonl(path: Path) -> Reading:
    file = path.open("rb")
    return Reading("line", _lines(file), _share(file, path))


def _lines(file: BinaryIO) -> Generator[tuple[int, object], None, None]:
    with file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise BadData(f"line {number} is longer than {MAX_LINE_BYTES:,} bytes; is this one record a line?")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _json(path: Path) -> Reading:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise BadData(f"{path} is one JSON document of {size:,} bytes; write a record a line (JSONL), which streams")
    try:
        document = _DECODER.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise BadData(f"{path} is nested too deeply") from None
    listed = _listed(document)
    if listed is None:
        raise BadData(f"{path} holds no list of records")
    done = itertools.count(1)
    last = [0]

    def items() -> Generator[tuple[int, object], None, None]:
        for value in listed:
            last[0] = next(done)
            yield last[0], value

    return Reading("item", items(), lambda: last[0] / max(1, len(listed)))


def _listed(document: object) -> list[Any] | None:
    """The document itself, or the one list of objects in it; a single record is a list of one."""
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        return None
    lists = [one for one in document.values() if isinstance(one, list) and one and isinstance(one[0], Mapping)]
    is_record = any(name in document for name in ("messages", "conversations", "chosen", "text", "prompt"))
    if is_record or not lists:
        return [document]
    return lists[0] if len(lists) == 1 else None


def _csv(path: Path) -> Reading:
    # Bytes that are no UTF-8 become lone surrogates, which are refused with the record that has them.
    file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    return Reading("line", _rows(path, file), _share(file.buffer, path))  # type: ignore[arg-type]


def _rows(path: Path, file: Any) -> Generator[tuple[int, object], None, None]:
    csv.field_size_limit(MAX_RECORD_CHARACTERS)
    with file:
        header = file.readline(MAX_LINE_BYTES)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=header.count)
        names = next(csv.reader([header], delimiter=delimiter), [])
        if len(set(names)) < len(names):
            raise BadData(f"{path}: line 1 names a column twice")
        rows = csv.reader(file, delimiter=delimiter)
        while True:
            line = rows.line_num + 2
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, BadRecord(f"is not CSV: {error}")
                continue
            if row:
                yield line, _row(names, row)


def _row(names: list[str], row: list[str]) -> object:
    if len(row) != len(names):
        return BadRecord(f"has {len(row)} columns, and line 1 names {len(names)}")
    return {name: _cell(value) for name, value in zip(names, row, strict=True) if value}


def _cell(value: str) -> Any:
    """A cell may hold a conversation as JSON."""
    if value.startswith(("[{", "[ {")):
        try:
            return _DECODER.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return value
    return value


def _parquet(path: Path) -> Reading:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EnvironmentUnfit("reading Parquet needs pyarrow: install tiermesh[train]") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"{path} is not Parquet: {error}") from error
    done = [0]

    def rows() -> Generator[tuple[int, object], None, None]:
        try:
            with file:
                for batch in file.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
                    for value in batch.to_pylist():
                        done[0] += 1
                        yield done[0], value
        except (pyarrow.ArrowException, OSError) as error:
            raise BadData(f"{path} is damaged after row {done[0]}: {error}") from error

    total = max(1, file.metadata.num_rows)
    return Reading("row", rows(), lambda: done[0] / total)


def _text(path: Path) -> Reading:
    file = path.open("rb")
    return Reading("line", _blocks(file), _share(file, path))


def _blocks(file: BinaryIO) -> Generator[tuple[int, object], None, None]:
    with file:
        line, first, block = 1, 1, b""
        while piece := file.readline(TEXT_BLOCK_CHARACTERS):
            block += piece
            line += piece.endswith(b"\n")
            if cut := _cut(block, piece):
                yield first, _plain_text(block[:cut])
                block, first = block[cut:], line
        if block.strip():
            yield first, _plain_text(block)


def _cut(block: bytes, last: bytes) -> int:
    """How much of a text is a record; 0: it goes on. Best ends a blank line, then any line, then a word, then none."""
    if last.endswith(b"\n"):
        enough = TEXT_BLOCK_CHARACTERS * (1 if not last.strip() else 2)
        return len(block) if len(block) >= enough and block.strip() else 0
    if len(block) < 8 * TEXT_BLOCK_CHARACTERS:
        return 0
    at = block.rfind(b" ")
    if at > 0:
        return at
    # Not inside a character: its other bytes begin with the bits 10.
    return next(at for at in range(len(block) - 1, 0, -1) if block[at] & 0xC0 != 0x80)


def _plain_text(block: bytes) -> object:
    try:
        return {"text": block.removeprefix(b"\xef\xbb\xbf").decode().strip("\r\n")}
    except UnicodeDecodeError:
        return BadRecord("is not valid UTF-8")


def _share(file: BinaryIO, path: Path) -> Callable[[], float]:
    size = max(1, path.stat().st_size)
    return lambda: 1.0 if file.closed else min(1.0, file.tell() / size)


READERS: Mapping[str, Callable[[Path], Reading]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "text": _text,
}
