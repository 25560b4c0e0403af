"""Sizes as people write them."""

from __future__ import annotations

import pytest

from tiermesh.core.size import parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("8 GB", 8 * 10**9), ("8gb", 8 * 10**9), ("1.5 GiB", 3 << 29), ("512 MiB", 512 << 20), (1000, 1000), ("7", 7)],
)
def test_what_is_a_size(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1 GB", "8 G", "8 GBit", "1e9", "many", True, 1.5, None, [8], "9" * 40])
def test_what_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="a size like 8 GB"):
        parse_size(text)
