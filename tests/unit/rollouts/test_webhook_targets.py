"""Addresses that a webhook may and may not have, however they are spelt, and to what a name leads."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidInput
from rollouts.webhook_sending import Letter, send, signature
from rollouts.webhook_targets import Refused, check_url, is_public, resolve

INSIDE = [
    "127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3",
    "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_not_the_public_internet_is_known_in_each_dress(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidInput, match="no address of the public internet"):
        check_url(f"https://{host}/hook", allow_private=False)
    assert check_url(f"https://{host}/hook", allow_private=True)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808"])
def test_public_addresses_are_fine(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_what_it_wraps(address: ipaddress.IPv4Address) -> None:
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_public(ipaddress.ip_address(wrapped)) == is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example.com/x", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "https://", "https:///x",
        "https://user:secret@example.com/", "https://example.com:99999/", "https://example.com:0/", "https://example.com/a b",
        "https://example.com/\n", "https://example.com/\x00", "https://b\u00fccher.example/", "https://[::1", "gopher://x/",
        "https://example.com/" + "a" * 1000, "http://:80/",
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url, allow_private=True)


def resolved(url: str, *, allow_private: bool = False) -> Any:
    return asyncio.run(resolve(url, allow_private=allow_private))


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "017700000001", "localhost", "[::ffff:7f00:1]"]
)
def test_odd_spellings_of_loopback_are_refused_when_it_is_sent(host: str) -> None:
    with pytest.raises(Refused):
        resolved(f"http://{host}:9/x")


def _names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Each look-up answers the next of `answers`."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr("rollouts.webhook_targets.socket.getaddrinfo", look_up)
    return asked


def test_the_judged_address_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _names(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    found = resolved("https://hooks.example.com:8443/a/b?c=d")
    assert (found.url, found.host, found.name) == (
        "https://93.184.216.34:8443/a/b?c=d", "hooks.example.com:8443", "hooks.example.com"
    )  # fmt: skip
    assert asked == ["hooks.example.com"]


def test_one_private_answer_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    _names(monkeypatch, ["93.184.216.34", "10.0.0.5"])
    with pytest.raises(Refused, match="no address of the public internet"):
        resolved("https://hooks.example.com/")


def test_a_name_that_leads_inside_is_a_refusal_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    _names(monkeypatch, ["169.254.169.254"])
    letter = Letter("1", "http://metadata.example.com/latest", "s", "ping", "{}")
    answer = asyncio.run(send(letter, allow_private=False))
    assert answer.status is None
    assert "no address of the public internet" in answer.response


def test_the_signature_is_a_known_one() -> None:
    # printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_test
    assert signature("whsec_test", '{"a":1}', 1_700_000_000) == (
        "t=1700000000,v1=38877139021993b830af32feea6e18a8da83eb2f6e49ee50bd9e4cf4ca4d3789"
    )  # fmt: skip
