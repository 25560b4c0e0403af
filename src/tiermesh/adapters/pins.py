"""Who needs which files: on disk, one small file an owner with a digest a line, so that a restart forgets nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_DIGEST = re.compile("[0-9a-f]{64}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Pins:
    """One folder. `open` before all else; methods raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pins: dict[str, frozenset[str]] = {}
        self._needed: Counter[str] = Counter()
        """By how many, of each digest: asked far more often than it changes."""

    def open(self) -> None:
        """Read what is there."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._folder.iterdir():
            if _OWNER.fullmatch(path.name):
                self._pins[path.name] = frozenset(_DIGEST.findall(path.read_text("ascii", "replace")))
        self._needed = Counter(digest for digests in self._pins.values() for digest in digests)

    def add(self, owner: str, digests: Iterable[str]) -> None:
        """It needs these too."""
        assert _OWNER.fullmatch(owner), f"{owner!r} must be a plain name"
        kept = self.of(owner) | frozenset(digests)
        if kept == self._pins.get(owner):
            return
        staged = self._folder / f".{owner}"
        staged.write_text("".join(f"{digest}\n" for digest in sorted(kept)), "ascii")
        staged.replace(self._folder / owner)
        self._needed.update(kept - self.of(owner))
        self._pins[owner] = kept

    def drop(self, owner: str) -> frozenset[str]:
        """It needs nothing any more; gives what nobody else does."""
        digests = self._pins.pop(owner, frozenset())
        self._needed -= Counter(digests)
        (self._folder / owner).unlink(missing_ok=True)
        return frozenset(digest for digest in digests if not self.needs(digest))

    def of(self, owner: str) -> frozenset[str]:
        """What it needs."""
        return self._pins.get(owner, frozenset())

    def needs(self, digest: str) -> bool:
        """Does anybody?"""
        return digest in self._needed

    def owners(self) -> list[str]:
        """All that need something."""
        return sorted(self._pins)
