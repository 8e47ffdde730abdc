"""`/v1/responses` of a real gateway process through the official client, with a fake language replica behind it."""

import json

import httpx
import openai
import pytest

from inference.protocol import generation
from inference.protocol.routes import VariantRoute
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import House, key

KEY = "ser_all.s2"
TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}]


@pytest.fixture(scope="module")
def house():
    found = House()
    replica = FakeLanguage(str(found.folder / "r1.sock"), name="r1")
    found.replicas["r1"] = found.run(replica.start())
    gateway = found.gateway()
    variants = [VariantRoute(1, "primary", 10_000, generation.language_signature(), [found.route()])]
    found.publish(found.table(variants, keys=[key("all", "s2", ["*"]), key("one", "s1", ["mlp"])]))
    gateway.wait_live().wait_ready()
    yield found
    found.close()


@pytest.fixture
def replica(house):
    return house.replicas["r1"]


@pytest.fixture
def client(house):
    with openai.OpenAI(base_url=f"{house.gateways[0].url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def test_a_response_is_made_kept_and_deleted(client):
    made = client.responses.create(model="mlp", input="a b c", instructions="be kind", metadata={"k": "v"})
    assert (made.status, made.output_text, made.metadata) == ("completed", "a b c", {"k": "v"})
    assert (made.usage.input_tokens, made.usage.total_tokens) == (3, 6)
    again = client.responses.retrieve(made.id)
    assert again.to_dict() == made.to_dict()
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_one_key_does_not_see_anothers(client, house):
    made = client.responses.create(model="mlp", input="a")
    answer = house.gateways[0].get(f"/v1/responses/{made.id}", key="ser_one.s1")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("Response with id")


def test_what_is_not_to_be_stored_is_not(client):
    made = client.responses.create(model="mlp", input="a", store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as found:
        client.responses.create(model="mlp", input="b", previous_response_id=made.id)
    assert found.value.code == "previous_response_not_found"


def test_a_conversation_goes_on(client, replica):
    first = client.responses.create(model="mlp", input="a b", instructions="old")
    second = client.responses.create(model="mlp", input="c d", instructions="new", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    told = [(one["role"], one["content"]) for one in replica.asked[-1].prompt.messages]
    assert told == [("system", "new"), ("user", "a b"), ("assistant", "a b"), ("user", "c d")]


def test_the_events_of_a_stream_in_their_order(client):
    events = list(client.responses.create(model="mlp", input="think a b", stream=True, include=[]))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[-1].response.output_text == "think a b"
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    assert client.responses.retrieve(events[-1].response.id).status == "completed"


def test_the_clients_own_stream_helper_puts_it_together(client):
    with client.responses.stream(model="mlp", input="tool sun", tools=TOOLS) as stream:
        found = stream.get_final_response()
    call = found.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"x": "sun"})


def test_tools_and_their_outputs(client, replica):
    first = client.responses.create(model="mlp", input="tools sun", tools=TOOLS)
    assert [one.call_id for one in first.output] == ["call_0", "call_1"]
    outputs = [{"type": "function_call_output", "call_id": f"call_{n}", "output": "warm"} for n in range(2)]
    client.responses.create(model="mlp", input=outputs, previous_response_id=first.id)
    messages = replica.asked[-1].prompt.messages
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "tool"]
    assert [one["id"] for one in messages[1]["tool_calls"]] == ["call_0", "call_1"]
    one = client.responses.create(model="mlp", input="tools sun", tools=TOOLS, parallel_tool_calls=False)
    assert len(one.output) == 1


def test_a_cut_response_is_incomplete(client):
    found = client.responses.create(model="mlp", input="a b c", max_output_tokens=2)
    assert (found.status, found.incomplete_details.reason, found.output_text) == (
        "incomplete", "max_output_tokens", "a b",
    )  # fmt: skip
    assert list(client.responses.create(model="mlp", input="a b c", max_output_tokens=2, stream=True))[-1].type == (
        "response.incomplete"
    )


def test_structured_text_is_parsed(client, replica):
    from pydantic import BaseModel

    class Shape(BaseModel):
        a: int

    assert client.responses.parse(model="mlp", input="json", text_format=Shape).output_parsed == Shape(a=1)
    assert replica.asked[-1].sampling.structure.json_schema


def test_a_break_within_the_stream_is_an_event(client):
    events = list(client.responses.create(model="mlp", input="break a b c", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "out_of_memory"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "messages[0].content[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": None}, "input"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_name(house, more, param):
    body = {"model": "mlp", "input": "a"} | more
    answer = httpx.post(house.gateways[0].url + "/v1/responses", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
