"""Which pages may open the console's WebSocket."""

import pytest
from django.test import override_settings

from accounts.origin import is_same_origin


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("https://serinus.example", "serinus.example", True),
        ("http://serinus.example", "serinus.example:80", True),
        ("http://127.0.0.1:8888", "127.0.0.1:8080", False),
        ("http://127.0.0.1", "127.0.0.1:8080", False),
        ("http://evil.example", "127.0.0.1:8080", False),
        ("null", "127.0.0.1:8080", False),
        ("", "127.0.0.1:8080", False),
        ("http://127.0.0.1:99999", "127.0.0.1:8080", False),
        ("http://[::1]:8080", "[::1]:8080", True),
    ],
)
def test_only_the_same_scheme_host_and_port_are_the_same_origin(origin: str, host: str, same: bool) -> None:
    assert is_same_origin(origin, host) is same


def test_a_trusted_origin_may_stand_before_a_proxy() -> None:
    with override_settings(CSRF_TRUSTED_ORIGINS=["https://models.example"]):
        assert is_same_origin("https://models.example", "127.0.0.1:8080")
