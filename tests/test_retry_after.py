"""`Retry-After` as servers write it, rightly or wrongly."""

from __future__ import annotations

import pytest

from tiermesh.protocol.retry_after import LEAST_S, MOST_S, seconds_in

NOW = 1_445_412_480.0
"""Wed, 21 Oct 2015 07:28:00 GMT."""


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("0", LEAST_S),
        ("3", 3.0),
        (" 2.5 ", 2.5),
        ("9" * 12, MOST_S),
        ("9" * 400, LEAST_S),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", LEAST_S),
        ("Wed, 21 Oct 2065 07:28:00 GMT", MOST_S),
        ("Wed, 21 Oct 99999 07:28:00 GMT", LEAST_S),
        *((none, LEAST_S) for none in (None, "", "soon", "-1", "nan", "inf", "1e3", "٣")),
    ],
)
def test_seconds_and_dates_are_read_and_nothing_else(told: str | None, seconds: float) -> None:
    assert seconds_in(told, NOW) == seconds
