"""What a translation can't honour is refused by name."""

from __future__ import annotations

from collections.abc import Set

from tiermesh.errors import InvalidInput
from tiermesh.protocol.validation import Wire


def refused(where: str, why: str) -> InvalidInput:
    """About the field `where`."""
    return InvalidInput(f"{where}: {why}", param=where)


def refuse_unknown(asked: Wire, harmless: Set[str]) -> None:
    """Refuse fields that the model doesn't have, unless they say nothing or are `harmless`."""
    for name, value in (asked.model_extra or {}).items():
        if name not in harmless and value not in (None, False, [], {}, ""):
            raise refused(name, "is not supported by this mesh; leave it out")
