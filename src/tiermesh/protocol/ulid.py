"""ULIDs: 48 bits of time and 80 of chance in 26 signs that sort as time does (github.com/ulid/spec)."""

from __future__ import annotations

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PATTERN = "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
CHANCE_BYTES = 10
LENGTH = 26


def make_ulid(wall_ms: int, chance: bytes) -> str:
    """`wall_ms` is Unix time in milliseconds, `chance` are `CHANCE_BYTES` that nobody can guess."""
    if len(chance) != CHANCE_BYTES:
        raise ValueError(f"a ULID has {CHANCE_BYTES} bytes of chance, not {len(chance)}")
    number = wall_ms << 80 | int.from_bytes(chance, "big")
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(LENGTH)))


def wall_ms_of(ulid: str) -> int:
    """When it was made, Unix time in milliseconds; 0 for what is none."""
    if len(ulid) != LENGTH or not set(ulid) <= set(ALPHABET):
        return 0
    number = 0
    for sign in ulid:
        number = number << 5 | ALPHABET.index(sign)
    return number >> 80
