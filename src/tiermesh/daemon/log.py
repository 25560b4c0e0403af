"""How the daemon's log looks: lines for a person, or JSON objects for a collector. Always on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time

from tiermesh.config import LogFormat, LogLevel


def set_up(form: LogFormat, level: LogLevel) -> None:
    """Send everything at `level` or above to stderr. Libraries speak from warning on.

    aiohttp's server has nothing to say: what fails in a handler is logged by ours, and what is left are callers who
    speak no HTTP, a traceback each.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tiermesh").setLevel(level.upper())
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class _Text(logging.Formatter):
    """Lines for a person. What others call themselves can neither begin a line nor colour the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(s if s.isprintable() else ascii(s)[1:-1] for s in text)


class _Json(logging.Formatter):
    """One object a line: time (ISO 8601, UTC), level, logger, message, and the traceback when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        row = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row)
