"""Who may talk to this node: the one middleware that judges every incoming request, for both doors.

With a token, the token decides, on every route but `/health`. Without one the mesh is open, and what decides is
where a request comes from: loopback, private and link-local addresses only, and never a web page of somebody else,
which reaches private addresses through a visitor's browser (`Origin`) or by a name that it makes resolve to this
machine (`Host`). Peers must show, besides, that they belong to this cluster and speak a version in common.
"""

from __future__ import annotations

import hmac
import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web

from tiermesh.adapters.passport import read_stamp
from tiermesh.daemon.api.context import CONTEXT, Context
from tiermesh.daemon.api.errors import Handler
from tiermesh.errors import Forbidden, Unauthenticated, WrongContentType
from tiermesh.protocol.openai_tuning import FILES_PATH

LOCAL_DOMAINS = (".local", ".lan", ".home.arpa", ".localhost")
"""Domains that no public name server answers for."""

PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)

REMEMBERED = 256
"""Callers and names whose look is remembered: those of a busy minute."""

PEER_DOOR = "/mesh/"
DATA_DOOR = "/api/data/"
"""Datasets are no JSON. Their content type is one that a web page can't send without asking first, either."""
FORM_DOOR = FILES_PATH
"""OpenAI's clients send files as forms. So can a web page, whose `Origin` was looked at by then."""
ANTHROPIC_KEY = "X-Api-Key"
"""Where Anthropic's clients show what all others show as a bearer token."""
OPEN_ROUTES = frozenset({"/health"})


@web.middleware
async def check_trust(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raises `Unauthenticated`, `Forbidden`, `WrongCluster`, `IncompatibleVersion` or `WrongContentType`."""
    context = request.app[CONTEXT]
    if context.passport.token is not None:
        _check_token(request, context.passport.token)
    else:
        _check_source(request.remote)
        _check_host(request.headers.get("Host"), context)
        _check_origin(request.headers.get("Origin"), request.headers.get("Host"))
    if request.path.startswith(PEER_DOOR):
        context.passport.judge(read_stamp(request.headers))
    if request.method in ("POST", "PUT", "PATCH") and request.match_info.http_exception is None:
        _check_content_type(request)
    return await handler(request)


def _check_token(request: web.Request, token: str) -> None:
    if request.path in OPEN_ROUTES:
        return
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        shown = request.headers.get(ANTHROPIC_KEY, "")
    if not shown:
        raise Unauthenticated("this mesh demands a token: send the header `Authorization: Bearer <MESH_TOKEN>`")
    if not hmac.compare_digest(shown.strip().encode("utf-8", "replace"), token.encode()):
        raise Unauthenticated("the token is wrong: it must be the MESH_TOKEN that this mesh was started with")


def _check_source(remote: str | None) -> None:
    private = _is_private(remote or "")
    if private is None:
        raise Forbidden(f"can't tell where this request comes from ({remote!r})")
    if not private:
        raise Forbidden(
            f"this mesh is open and serves private addresses only, not {remote}; set MESH_TOKEN on its nodes"
        )


@lru_cache(maxsize=REMEMBERED)
def _is_private(remote: str) -> bool | None:
    """Is it an address of one's own networks? None: it is no address."""
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in PRIVATE_NETWORKS if network.version == address.version)


def _check_host(host: str | None, context: Context) -> None:
    if host is None:  # HTTP/1.0; every browser sends it
        return
    name = _host_name(host)
    if name is None or not (_is_address(name) or _is_local(name) or name in context.host_names):
        raise Forbidden(
            f"this node is not known as {host!r}: use its IP address, `localhost` or a .local name, or set MESH_TOKEN"
        )


def _check_origin(origin: str | None, host: str | None) -> None:
    if origin is not None and _host_and_port(origin) != (host or "").lower():
        raise Forbidden(
            f"requests from web pages of {origin[:200]!r} are not served; set MESH_TOKEN to serve any caller"
        )


def _check_content_type(request: web.Request) -> None:
    if request.method == "PUT" and request.path.startswith(DATA_DOOR):
        if request.content_type != "application/octet-stream":
            raise WrongContentType(
                f"send data with the header `Content-Type: application/octet-stream`, not {request.content_type!r}",
                param="Content-Type",
            )
        return
    if request.path == FORM_DOOR:
        if request.content_type != "multipart/form-data":
            raise WrongContentType(
                f"send files with the header `Content-Type: multipart/form-data`, not {request.content_type!r}",
                param="Content-Type",
            )
        return
    if request.content_type != "application/json":
        raise WrongContentType(
            f"send the body as JSON, with the header `Content-Type: application/json`, not {request.content_type!r}",
            param="Content-Type",
        )


def _host_and_port(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


@lru_cache(maxsize=REMEMBERED)
def _host_name(host: str) -> str | None:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name.rstrip(".") if name else None


@lru_cache(maxsize=REMEMBERED)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(name: str) -> bool:
    return name == "localhost" or name.endswith(LOCAL_DOMAINS)
