"""What the command line and the environment say to the gateway."""

from __future__ import annotations

import pytest

from inference.config import BadSetting, gateway_config
from serinus.paths import up_config


def test_shared_memory_and_forwarded_headers_are_off_unless_they_are_asked_for() -> None:
    config = gateway_config({})
    assert (config.allow_client_shm, config.header_forward_pattern, config.server_name) == (False, None, "serinus")
    config = gateway_config({
        "SERINUS_ALLOW_CLIENT_SHM": "1", "SERINUS_HTTP_HEADER_FORWARD_PATTERN": "^X-T", "SERINUS_SERVER_NAME": "triton",
    })  # fmt: skip
    assert config.allow_client_shm
    assert config.header_forward_pattern is not None
    assert config.header_forward_pattern.search("x-tenant")
    assert config.server_name == "triton"


def test_a_pattern_that_is_none_stops_the_start_with_the_variables_name() -> None:
    with pytest.raises(BadSetting, match="SERINUS_HTTP_HEADER_FORWARD_PATTERN"):
        gateway_config({"SERINUS_HTTP_HEADER_FORWARD_PATTERN": "("})


def test_up_hands_the_gateways_settings_on() -> None:
    config = up_config({"SERINUS_ALLOW_CLIENT_SHM": "1", "SERINUS_SERVER_NAME": "triton"})
    assert (config.allow_client_shm, config.server_name) == (True, "triton")
    assert (up_config({}).allow_client_shm, up_config({}).server_name) == (False, "serinus")
