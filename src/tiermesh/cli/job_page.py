"""A job's report as files: the page, and the picture that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.errors import InvalidInput, NotFound, StateUnwritable

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient

PICTURE = "report.png"
"""As the page calls it."""


async def fetch_page(mesh: RemoteClient, job: str) -> tuple[str, bytes | None]:
    """The page, and its picture where it has one."""
    text = await mesh.job_page(job)
    if f"]({PICTURE})" not in text:
        return text, None
    try:
        return text, await mesh.job_picture(job)
    except (NotFound, InvalidInput):  # it has none after all
        return text, None


def write_page(page: Path, text: str, picture: bytes | None) -> list[Path]:
    """Gives what was written. Raises `StateUnwritable`."""
    beside = page.with_name(PICTURE)
    try:
        page.write_text(text, "utf-8")
        if picture is not None:
            beside.write_bytes(picture)
    except OSError as error:
        raise StateUnwritable(f"can't write {page}: {(error.strerror or 'unknown reason').lower()}") from error
    return [page] if picture is None else [page, beside]
