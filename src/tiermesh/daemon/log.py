"""How the daemon's log looks: lines for a person, or JSON objects for a collector. Always on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time

from tiermesh.config import LogFormat, LogLevel


def set_up(form: LogFormat, level: LogLevel) -> None:
    """Send everything at `level` or above to stderr. Libraries speak from warning on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tiermesh").setLevel(level.upper())


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
        return json.dumps(row, ensure_ascii=False)
