"""Amounts of memory as people write them: `8 GB`, `512 MiB`, `1500000000`."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_BY_ANY_CASE = {unit.lower(): factor for unit, factor in _UNITS.items()}
RIGHT = "a size like 8 GB, 512 MiB or a number of bytes"


def parse_size(value: object) -> int:
    """Bytes. Raises ValueError, saying what would be right."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?b)?", text.strip().lower())
    if found is None:
        raise ValueError(RIGHT)
    amount, unit = found.groups()
    return int(float(amount) * _BY_ANY_CASE[unit or ""])
