"""Addresses and URLs as a person writes them."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from tiermesh.errors import InvalidConfig
from tiermesh.types import Address

DEFAULT_PORT = 8000


def parse_address(text: str, *, param: str, default_port: int = DEFAULT_PORT) -> Address:
    """`HOST`, `HOST:PORT`, `IPV6` or `[IPV6]:PORT` as an `Address`. `param` is the field that an error names."""
    if bracketed := re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text):
        host, port = bracketed[1], bracketed[2]
    else:
        host, port = text.split(":") if text.count(":") == 1 else (text, None)
    port = str(default_port) if port is None else port
    if not _is_host(host) or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidConfig(f"{param} is {text!r}, but must be HOST:PORT, for example 192.168.1.20:8000", param=param)
    return join_address(host, int(port))


def join_address(host: str, port: int) -> Address:
    """`host:port`, with brackets around an IPv6 host."""
    return Address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def check_host(host: str) -> str:
    """A host name or an IP address, without a port or a scheme. Raises ValueError saying what it must be."""
    if not _is_host(host):
        raise ValueError("a host name or an IP address alone, for example gaming-pc.local; a port has its own field")
    return host


def check_url(url: str) -> str:
    """An http(s) URL without a trailing slash or `/v1`. Raises ValueError saying what it must be."""
    right = "an http:// or https:// URL with a host, for example http://localhost:11434"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError(right) from error
    if not valid or parts.query or parts.fragment or any(c.isspace() for c in url):
        raise ValueError(right)
    return url.rstrip("/").removesuffix("/v1")


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return bool(ipaddress.IPv6Address(host))
        except ValueError:
            return False
    return re.fullmatch(r"[^\s/\[\]@?#%]+", host) is not None and host.isprintable()
