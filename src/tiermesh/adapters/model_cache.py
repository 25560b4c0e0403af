"""The folder of converted models: finished ones appear whole or not at all, and know their own digest.

Layout of `$TIERMESH_CACHE` (default: the user's cache folder for `tiermesh`):

    models/<name>/          a finished model: safetensors, tokenizer, config, or `model.gguf`; and `tiermesh.json`, its
                            manifest
    staging/<name>/         what an unfinished pull left; only whoever holds the lock may touch it
    locks/<name>.lock       held with flock(2), so that a dead holder holds nothing
    manifests/<hash>.json   manifests of folders that belong to somebody else
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from tiermesh.adapters.gguf_header import read_header
from tiermesh.errors import ModelSourceFailed

MANIFEST = "tiermesh.json"
GGUF = "model.gguf"
"""What a model that is kept as a GGUF is called in its folder."""
HASH_BLOCK_BYTES = 1 << 20
"""Large enough that hashing runs at the speed of the hash, small enough not to be noticed in memory."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself for its JSON header."""
CONFIG_FILES = ("config.json", "generation_config.json")
VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path")
"""Say who wrote a config, not what the model is."""
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""What weights, configuration and tokenizers are kept in; a README must not change a digest."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is worth knowing of a model's folder, or its GGUF file, without reading its weights again.

    `files` maps each file to `[size, mtime in ns]`; a manifest is stale once they differ. `token_bytes` is a GGUF's.
    """

    digest: str
    parameters: int
    size_bytes: int
    context_length: int | None
    files: dict[str, list[int]]
    token_bytes: int = 0


def cache_folder() -> Path:
    """Where models are kept: `$TIERMESH_CACHE`, else the platform's cache folder."""
    return Path(os.environ.get("TIERMESH_CACHE") or platformdirs.user_cache_dir("tiermesh"))


def safe_name(name: str) -> str:
    """A model's name as one file name, the same on every platform: `smollm2:135m` is `smollm2--135m`."""
    return name.replace(":", "--").replace("/", "--")


def model_folder(name: str) -> Path:
    """Where the finished model of a catalogue name is, or will be."""
    return cache_folder() / "models" / safe_name(name)


def staging_folder(name: str) -> Path:
    """Where a pull of this name works."""
    return cache_folder() / "staging" / safe_name(name)


@contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock of a name; yields its descriptor, which children inherit so that the lock outlives none of them.

    Raises `BlockingIOError` when it is held and `wait` is False.
    """
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{safe_name(name)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def publish(staged: Path, final: Path) -> None:
    """Make a staged model the finished one, durably: its files reach the disk before its name does."""
    for path in [*staged.rglob("*"), staged]:
        _sync(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)
    _sync(final.parent)


def manifest_of(model: Path) -> Manifest:
    """The manifest of any model folder or GGUF: read where it is still true, else made by hashing it all once."""
    kept = _manifest_path(model)
    found = _read_manifest(kept)
    if found is not None and found.files == (_stamps(model) if model.is_dir() else {model.name: _stamp(model)}):
        return found
    made = measure(model) if model.is_dir() else measure_gguf(model)
    _write_json(kept, asdict(made))
    return made


def write_manifest(folder: Path) -> Manifest:
    """Hash a folder of our own and leave the manifest inside it."""
    gguf = folder / GGUF
    made = measure_gguf(gguf) if gguf.exists() else measure(folder)
    _write_json(folder / MANIFEST, asdict(made))
    return made


def measure_gguf(file: Path) -> Manifest:
    """Hash the file, which holds all there is: weights, configuration, tokenizer and template."""
    header = read_header(file)
    return Manifest(
        digest=f"sha256:{sha256_of(file)}",
        parameters=header.parameters,
        size_bytes=file.stat().st_size,
        context_length=header.context_length,
        files={file.name: _stamp(file)},
        token_bytes=header.token_bytes,
    )


def measure(folder: Path) -> Manifest:
    """Hash weights, configuration and tokenizer. The digest depends on contents and file names alone."""
    total = hashlib.sha256()
    stamps = _stamps(folder)
    for name in stamps:
        total.update(f"{name}\0{_content_digest(folder / name)}\n".encode())
    config = read_config(folder / "config.json")
    return Manifest(
        digest=f"sha256:{total.hexdigest()}",
        parameters=sum(_count_parameters(folder / name) for name in stamps if name.endswith(".safetensors")),
        size_bytes=sum(size for size, _ in stamps.values()),
        context_length=_context_length(config),
        files=stamps,
    )


def read_config(path: Path) -> dict[str, object]:
    """A model's `config.json` or its like; `ModelSourceFailed` says what is wrong with it."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceFailed(f"{path} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelSourceFailed(f"{path} is not a JSON object")
    return config


def _manifest_path(model: Path) -> Path:
    folder = model.parent if model.name == GGUF else model
    if folder.parent == cache_folder() / "models":
        return folder / MANIFEST
    return cache_folder() / "manifests" / f"{hashlib.sha256(os.fsencode(model.resolve())).hexdigest()}.json"


def _read_manifest(path: Path) -> Manifest | None:
    try:
        return Manifest(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of each file that belongs to the model, by name in order."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in MODEL_SUFFIXES and path.name != MANIFEST and path.is_file():
            found[path.name] = _stamp(path)
    return found


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _content_digest(path: Path) -> str:
    if path.name in CONFIG_FILES:
        config = {key: value for key, value in read_config(path).items() if key not in VOLATILE_CONFIG_KEYS}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ModelSourceFailed(f"{path}: not a safetensors file")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ModelSourceFailed(f"{path}: not a safetensors file: {error}") from error
    tensors = (value for key, value in header.items() if key != "__metadata__")
    return sum(_product(tensor["shape"]) for tensor in tensors)


def _product(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _context_length(config: dict[str, object]) -> int | None:
    for key in ("max_position_embeddings", "n_positions", "seq_length"):
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(data, indent=1), "utf-8")
    staged.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
