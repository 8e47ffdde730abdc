"""The browser module, on a page of another origin than the gateway's, in a real Chromium."""

import functools
import http.server
import threading
from pathlib import Path

import pytest

from inference.protocol.generation import language_signature
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.browser import Visitor, chromium, executable
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, TEXT, House, token, until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(120),
]
WIDE = Signature([TensorSpec("x", "FP32", [-1, -1])], [TensorSpec("y", "FP32", [-1, -1])], max_batch_size=8)
MODULES = Path(__file__).resolve().parents[2] / "frontend" / "static" / "js" / "public"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.replica("text")
    text = [VariantRoute(1, "primary", 10_000, TEXT, [found.route("text")])]
    mlp = VariantRoute(1, "primary", 10_000, MLP, [found.route()])
    found.replicas["lm"] = found.run(FakeLanguage(str(found.folder / "lm.sock"), name="lm").start())
    language = [VariantRoute(1, "primary", 10_000, language_signature(), [found.route("lm")])]
    endpoints = [
        EndpointRoute("wide", "w", "s", False, 20_000, 100, [VariantRoute(1, "primary", 10_000, WIDE, [found.route()])]),
        EndpointRoute("text", "t", "s", False, 5000, 100, text), EndpointRoute("lm", "l", "s", False, 600, 100, language),
    ]  # fmt: skip
    found.publish(found.table([mlp], queue_limit=200, endpoints=endpoints))
    found.gateway().wait_live().wait_ready().wait_ready("text")
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(house):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=MODULES))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with chromium() as browser:
        visitor = Visitor(browser, f"http://127.0.0.1:{server.server_port}", excused=r"404|WebSocket connection to")
        visitor.page.goto("/")
        visitor.page.evaluate(
            """async (url) => {
              Object.assign(window, await import("/serinus-stream.js"), { url });
              window.stream = await SerinusStream.connect(url, { key: "ser_all.s2" });
              window.row = tensor("FP32", [1, 16], Float32Array.from({ length: 16 }, (_, i) => i));
            }""",
            house.gateways[0].url,
        )
        yield visitor.page
        assert not visitor.troubles
    server.shutdown()
    server.server_close()
    thread.join()


def run(page, body):
    return page.evaluate(f"async () => {{ {body} }}")


def code_of(work):
    return f"try {{ {work}; return 'no error' }} catch (error) {{ return error.code }}"


def test_typed_arrays_go_in_and_come_out(page):
    found = run(page, "const a = await stream.infer('mlp', { x: row }); return [a.model, a.version, a.arm, "
                      "a.outputs.y.shape, a.outputs.y.data.constructor.name, Array.from(a.outputs.y.data)]")  # fmt: skip
    assert found == ["mlp", "1", "primary", [1, 4], "Float32Array", [0, 2, 4, 6]]
    found = run(page, "const a = await stream.infer('text', { text: tensor('BYTES', [1, 1], ['grüße']) });"
                      "return new TextDecoder().decode(a.outputs.y.data[0])")  # fmt: skip
    assert found == "grüße"


def test_many_requests_share_the_connection(page):
    found = run(page, "const all = await Promise.all(Array.from({ length: 100 }, () => stream.infer('mlp', { x: row })));"
                      "return all.length")  # fmt: skip
    assert found == 100


def test_a_stream_is_an_async_iterator_and_leaving_it_cancels(page, house):
    found = run(page, "const seen = []; for await (const part of stream.stream('mlp', { x: row }, { parameters: { parts: 20 }"
                      ", credit: 2 })) seen.push(part.outputs.y.data[0]); return seen")  # fmt: skip
    assert found == list(range(20))
    before = len(house.replicas["r1"].cancelled)
    house.replicas["r1"].latency_s = 0.01
    run(page, "for await (const _ of stream.stream('mlp', { x: row }, { parameters: { parts: 1000 } })) break")
    until(lambda: len(house.replicas["r1"].cancelled) > before, 2)
    house.replicas["r1"].latency_s = 0.0


CHAT = "const say = (content) => [{ role: 'user', content }]; const seen = [];"


def test_a_chat_comes_in_chunks_and_ends_when_it_is_left(page, house):
    replica = house.replicas["lm"]
    body = "{ credit: 1, body: { temperature: 0.5, stream_options: { include_usage: true } } }"
    found = run(
        page, f"{CHAT} for await (const c of stream.chat('lm', say('a b c'), {body})) seen.push(c); return seen"
    )
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1]) == "a b c"
    assert found[-1]["usage"]["completion_tokens"] == 3
    assert replica.asked[-1].sampling.temperature == 0.5
    found = run(page, "const seen = []; for await (const c of stream.completion('lm', 'a b')) seen.push(c.choices[0].text);"
                      "return seen")  # fmt: skip
    assert found == ["a", " b"]
    before = len(replica.cancelled)
    run(page, f"{CHAT} for await (const _ of stream.chat('lm', say('slow' + ' w'.repeat(400)))) break")
    until(lambda: len(replica.cancelled) == before + 1, 2)
    work = "const c = new AbortController(); setTimeout(() => c.abort(), 100);"
    talk = "for await (const _ of stream.chat('lm', say('slow' + ' w'.repeat(400)), { signal: c.signal })) ;"
    assert run(page, CHAT + work + code_of(talk)) == "cancelled"
    until(lambda: len(replica.cancelled) == before + 2, 2)
    assert (
        run(page, CHAT + code_of("await stream.chat('lm', say('a'), { body: { top_p: 7 } }).next()")) == "invalid_input"
    )


def test_a_signal_cancels(page, house):
    house.replicas["r1"].latency_s = 2.0
    before = len(house.replicas["r1"].cancelled)
    work = "const c = new AbortController(); setTimeout(() => c.abort(), 100);"
    assert run(page, work + code_of("await stream.infer('mlp', { x: row }, { signal: c.signal })")) == "cancelled"
    until(lambda: len(house.replicas["r1"].cancelled) > before, 2)
    house.replicas["r1"].latency_s = 0.0


def test_errors_have_codes(page):
    assert run(page, code_of("await stream.infer('nope', { x: row })")) == "not_found"
    assert run(page, code_of("await stream.infer('mlp', { x: new Float32Array(3) })")) == "invalid_input"
    assert run(page, code_of("await stream.infer('mlp', { x: 'three' })")) == "invalid_input"
    assert run(page, code_of("await SerinusStream.connect(url, { key: 'ser_all.wrong' })")) == "closed"
    assert run(page, "const s = await SerinusStream.connect(url, { key: 'ser_all.s2' }); s.close();"
                     + code_of("await s.infer('mlp', { x: row })")) == "closed"  # fmt: skip


def test_a_token_opens_its_endpoint_and_a_page_may_read_it_from_its_server(page):
    given = token("someone", "mlp", "playground")
    asked = "(await s.infer('mlp', { x: row })).arm"
    found = run(page, f"const s = await SerinusStream.connect(url + '/v2/models/mlp/stream', {{ key: '{given}' }});"
                      f"const arm = {asked}; s.close(); return arm")  # fmt: skip
    assert found == "primary"
    bad = f"await SerinusStream.connect(url + '/v2/models/text/stream', {{ key: '{given}' }})"
    assert run(page, code_of(bad)) == "closed"


def test_a_large_tensor_goes_in_whatever_pieces_the_browser_likes(page, house):
    house.replicas["r1"].echoes = True
    work = "const x = Float32Array.from({ length: 64 * 16 * 1024 }, (_, i) => i % 65521);"
    ask = "const a = await stream.infer('wide', { x: tensor('FP32', [1, x.length], x) });"
    found = run(page, work + ask + "return [a.outputs.y.data.length, a.outputs.y.data.every((v, i) => v === x[i])]")
    assert found == [64 * 16 * 1024, True]
    house.replicas["r1"].echoes = False


def test_questions_and_generate_need_no_http(page):
    assert run(page, "return (await stream.ask('metadata', 'mlp')).name") == "mlp"
    assert run(page, "return await stream.ask('ready')") is True
    assert run(page, "return (await stream.generate('text', { text: 'hi' })).y") == "hi"


def test_reconnecting_is_the_pages_choice(page, house):
    run(page, "window.back = await SerinusStream.connect(url, { key: 'ser_all.s2', reconnect: true });"
              "window.gone = null; stream.onclose = (error) => { window.gone = error.code };")  # fmt: skip
    gateway = house.gateways[0]
    gateway.stop()
    page.wait_for_function("window.gone === 'closed'")
    again = house.gateway(SERINUS_HTTP_PORT=str(gateway.port))
    again.port, again.url = gateway.port, gateway.url
    again.wait_live().wait_ready()
    page.wait_for_function(
        "async () => { try { return (await back.infer('mlp', { x: row })).isLast } catch { return false } }",
        timeout=20_000,
    )
    run(page, "window.stream = await SerinusStream.connect(url, { key: 'ser_all.s2' })")
    house.gateways[0] = again
