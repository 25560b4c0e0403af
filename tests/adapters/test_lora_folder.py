"""Adapters on disk: what names them, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.adapters.lora_folder import read_adapter
from tiermesh.errors import ModelSourceFailed

CONFIG = '{"peft_type": "LORA", "r": 8}'


def write(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_equal_contents_are_one_adapter_wherever_they_are(tmp_path: Path) -> None:
    one, two = read_adapter("one", str(write(tmp_path / "a"))), read_adapter("two", str(write(tmp_path / "b")))
    other = read_adapter("one", str(write(tmp_path / "c", b"x")))
    assert one.digest == two.digest != other.digest
    assert one.size_bytes == len(CONFIG) + 1
    assert one.path == tmp_path / "a"


def test_on_another_base_it_is_another_model(tmp_path: Path) -> None:
    adapter = read_adapter("one", str(write(tmp_path / "a")))
    digests = {adapter.digest_on("sha256:1"), adapter.digest_on("sha256:2"), adapter.digest}
    assert len(digests) == 3
    assert all(digest.startswith("sha256:") for digest in digests)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceFailed, match=r"adapter x: .*/none has no adapter_config.json and no adapter_model"):
        read_adapter("x", str(tmp_path / "none"))


@pytest.mark.parametrize("config", ["{}", "[]", "not json", '{"peft_type": "IA3", "r": 8}', '{"peft_type": "LORA"}'])
def test_what_is_no_lora_is_told_before_a_worker_trips_over_it(tmp_path: Path, config: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelSourceFailed, match=r"adapter a: .*adapter_config\.json"):
        read_adapter("a", str(tmp_path))
