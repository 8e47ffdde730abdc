"""Malformed messages get a typed status each, and the gateway goes on."""

import pytest
import tritonclient.grpc as triton

from tests.support.gateway_house import House, free_port
from tests.support.grpc_fuzz import fuzz


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    gateway = found.gateway(SERINUS_GRPC_PORT=str(free_port()), SERINUS_ALLOW_CLIENT_SHM="1")
    found.publish(found.table())
    gateway.wait_live().wait_ready()
    yield found
    found.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_malformed_message_gets_a_typed_status(house, seed):
    gateway = house.gateways[0]
    seen = fuzz(gateway.grpc_address, 250, seed, "ser_all.s2")
    assert seen["INVALID_ARGUMENT"] > 30
    assert seen["OK"] > 10
    assert sum(seen.values()) == 250
    assert gateway.process.poll() is None
    assert "Traceback" not in gateway.log.read_text()
    with triton.InferenceServerClient(gateway.grpc_address) as client:
        assert client.is_model_ready("mlp", headers={"x-api-key": "ser_all.s2"})
