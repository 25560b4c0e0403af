"""Artifacts: what a job leaves or goes on from, as a list of files by their content, and how nodes copy them.

A manifest's canonical JSON is kept and fetched like any other content; its SHA-256 is the artifact's id. Whoever has
the id can check the list, and with the list every file. A list that comes from another node is hostile until it was
read here: its names become paths.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from tiermesh.errors import DataUnusable
from tiermesh.protocol import ulid
from tiermesh.protocol.validation import Wire

BLOBS_PATH = "/mesh/v1/blobs/"
COPIES_PATH = "/mesh/v1/copies"
OVER_PATH = f"{COPIES_PATH}/over"

MAX_FILES = 4096
"""A checkpoint has a dozen, the shards of a large model some hundred."""
MAX_MANIFEST_BYTES = 4 << 20
"""So many files with names of usual length."""
NAME_LIMIT_BYTES = 240
"""Of a whole name; what any file system takes as one part."""
MAX_DEPTH = 8
MAX_SIZE_BYTES = 1 << 50
MAX_ASKED = 1000
"""Jobs in one question."""
MAX_HOLDERS = 64
"""Nodes that are tried for one copy."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
CopyKind = Literal["data", "checkpoint", "result"]
_PART = re.compile(r"[\w+=@,-][\w .+=@,()\[\]-]*")
"""Of a path: letters of any script, no dot at its beginning, nothing that a shell, a URL or a file system minds."""


def _check_name(name: str) -> str:
    parts = name.split("/")
    if (
        len(name.encode()) > NAME_LIMIT_BYTES
        or len(parts) > MAX_DEPTH
        or not all(_PART.fullmatch(part) and not part.endswith((" ", ".")) for part in parts)
    ):
        raise ValueError(f"{name[:80]!r} is no name of a file within an artifact")
    return name


class ArtifactFile(Wire):
    """One file. `name` is a relative path with slashes."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_check_name)]
    sha256: Sha256
    size_bytes: int = Field(ge=0, le=MAX_SIZE_BYTES)


class Manifest(Wire):
    """All files of an artifact. No two names are one where cases are folded, and none is another's folder."""

    files: list[ArtifactFile] = Field(min_length=1, max_length=MAX_FILES)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        folded = sorted(f"{_folded(file.name)}/" for file in self.files)
        for one, next_one in pairwise(folded):
            if next_one.startswith(one):
                raise ValueError(f"{next_one[:80]!r} can't lie beside {one[:80]!r}")
        return self

    @classmethod
    def of(cls, files: Iterable[ArtifactFile]) -> Self:
        """In the order of their names, so that equal files make an equal artifact."""
        return cls(files=sorted(files, key=lambda file: file.name))

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Raises `DataUnusable` for what is no manifest."""
        if len(content) > MAX_MANIFEST_BYTES:
            raise DataUnusable(f"a manifest of {len(content):,} bytes is none")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise DataUnusable(f"the manifest can't be used: {first['msg']}") from None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def artifact(self) -> str:
        """Its id."""
        return hashlib.sha256(self.encoded()).hexdigest()

    def encoded(self) -> bytes:
        """Canonical JSON."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


class CopyOrder(Wire):
    """`POST /mesh/v1/copies`: fetch the artifact from one of the holders and keep it for the job.

    Sent again and again until the answer is `held`: each time it says how far it is. `step` orders the checkpoints of
    one attempt; a later attempt's are newer than all of an earlier one's.
    """

    job: Annotated[str, Field(pattern=ulid.PATTERN)]
    kind: CopyKind
    artifact: Sha256
    holders: list[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]] = Field(min_length=1, max_length=MAX_HOLDERS)
    attempt: int = Field(0, ge=0, lt=10**7)
    step: int = Field(0, ge=0, lt=10**12)


class CopyReport(Wire):
    """`coming`: it is being fetched, `bytes` so far, so that whoever asks knows that it goes on."""

    state: Literal["coming", "held"]
    bytes: int = 0


class JobsAsked(Wire):
    """`POST /mesh/v1/copies/over`: of which of these is nothing but the result needed any more? It answers in kind."""

    jobs: list[Annotated[str, Field(pattern=ulid.PATTERN)]] = Field(max_length=MAX_ASKED)


class JobsEnded(Wire):
    """`POST /mesh/v1/jobs/ended`, asked in the same words of the coordinator: those of them that are over, and those of
    which a person wants nothing any more."""

    over: list[Annotated[str, Field(pattern=ulid.PATTERN)]] = Field(max_length=MAX_ASKED)
    forgotten: list[Annotated[str, Field(pattern=ulid.PATTERN)]] = Field(max_length=MAX_ASKED)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
