"""Where a webhook may lead. An address that a person of some team wrote must not reach this machine or its network.

A name is resolved once, every answer must be a public address, and the connection goes to the one that was judged, so a
name that answers something else a moment later gains nothing. SERINUS_WEBHOOKS_ALLOW_PRIVATE=1 lifts the rule where
receivers live in the same network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from inference.errors import InvalidInput

MAX_URL = 1000
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Its own few threads: a resolver that hangs must not hold up whoever waits for it.
_resolvers = ThreadPoolExecutor(4, thread_name_prefix="resolve")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """name: whom the certificate must name; host: the Host header; url: with the judged address in the name's place."""

    name: str
    host: str
    url: str


class Refused(Exception):
    """This address is not sent to; the message says why."""


def check_url(url: str, *, allow_private: bool) -> str:
    """`url`, if a webhook may have it. Raises InvalidInput. What a name resolves to is judged at each delivery."""
    if len(url) > MAX_URL or not url.isascii() or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise InvalidInput(f"a webhook's address has up to {MAX_URL} printable ASCII characters and no spaces")
    parts = _parts(url)
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("a webhook's address holds no user and password: who sends is proved by the signature")
    if (found := _literal(parts.hostname or "")) is not None and not allow_private and not is_public(found):
        raise InvalidInput(_private(parts.hostname or ""))
    return url


async def resolve(url: str, *, allow_private: bool) -> Target:
    """Raises Refused."""
    parts = _parts(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.run_in_executor(
            _resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    except (OSError, UnicodeError) as error:
        raise Refused(f"the name {host[:100]} cannot be resolved") from error
    found = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    if not found:
        raise Refused(f"the name {host[:100]} cannot be resolved")
    if not allow_private and not all(is_public(address) for address in found):
        raise Refused(_private(host[:100]))
    address = f"[{found[0]}]" if found[0].version == 6 else str(found[0])
    named = f"[{host}]" if ":" in host else host
    shown = named if port == _PORTS[parts.scheme] else f"{named}:{port}"
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query else ""
    return Target(host, shown, f"{parts.scheme}://{address}:{port}{path}{query}")


def is_public(address: Address) -> bool:
    """Whether it is an address of the public internet, whatever other address it wraps up."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if int(address) >> 32 == 0:  # IPv4-compatible, as ::127.0.0.1
            return False
    return address.is_global and not address.is_multicast


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _private(host: str) -> str:
    return (
        f"{host} is no address of the public internet: receivers in your own network need "
        "SERINUS_WEBHOOKS_ALLOW_PRIVATE=1, which whoever runs this server sets"
    )


def _parts(url: str) -> SplitResult:
    """Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise InvalidInput("a webhook's address begins with https:// or http:// and names a host")
    return parts
