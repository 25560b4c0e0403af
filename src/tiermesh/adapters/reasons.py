"""Why a connection failed, in words for a person."""

from __future__ import annotations

import os
import ssl


def reason_of(error: BaseException) -> str:
    """`connection refused`, and not what an HTTP library makes of it."""
    system = getattr(error, "os_error", None)
    if isinstance(system, OSError) and not isinstance(system, ssl.SSLError):
        number = system.errno or 0  # below 0 where a name could not be resolved
        if said := os.strerror(number) if number > 0 else system.strerror:
            return said.lower()
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
