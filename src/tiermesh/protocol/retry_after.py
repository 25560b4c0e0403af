"""`Retry-After`, as servers write it: seconds, or a date (RFC 9110, 10.2.3)."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

LEAST_S = 1.0
"""Where a server says that it is busy, but not until when, or that it will be free at once: most places become free
within it, and nobody is asked again and again."""

MOST_S = 3600.0
"""Whoever wants to be left alone for longer is asked once an hour all the same."""

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)


def seconds_in(told: str | None, wall: float) -> float:
    """From the header's value; `wall` is Unix time."""
    text = (told or "").strip()
    if _SECONDS.fullmatch(text):
        return min(max(LEAST_S, float(text)), MOST_S)
    try:
        at = parsedate_to_datetime(text)
        return min(max(LEAST_S, at.timestamp() - wall), MOST_S)
    except (ValueError, OverflowError):
        return LEAST_S
