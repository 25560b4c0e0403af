"""Adapters on disk: what names them, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.adapters.lora_folder import read_adapter
from tiermesh.errors import ModelSourceFailed


def write(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_equal_contents_are_one_adapter_wherever_they_are(tmp_path: Path) -> None:
    one, two = read_adapter("one", str(write(tmp_path / "a"))), read_adapter("two", str(write(tmp_path / "b")))
    other = read_adapter("one", str(write(tmp_path / "c", b"x")))
    assert one.digest == two.digest != other.digest
    assert one.size_bytes == 3
    assert one.path == tmp_path / "a"


def test_on_another_base_it_is_another_model(tmp_path: Path) -> None:
    adapter = read_adapter("one", str(write(tmp_path / "a")))
    digests = {adapter.digest_on("sha256:1"), adapter.digest_on("sha256:2"), adapter.digest}
    assert len(digests) == 3
    assert all(digest.startswith("sha256:") for digest in digests)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceFailed, match=r"adapter x: .*/none has no adapter_config.json and no adapter_model"):
        read_adapter("x", str(tmp_path / "none"))
