/**
 * Serinus over a WebSocket, for any page: many requests on one connection, tensors as bytes, streams, cancel.
 *
 *     import { SerinusStream, tensor } from "https://console.example/static/js/public/serinus-stream.js";
 *     const stream = await SerinusStream.connect("wss://gateway.example", { key: "ser_..." });
 *     const answer = await stream.infer("digits", { x: tensor("FP32", [1, 64], new Float32Array(64)) });
 *     answer.outputs.y.data;
 *     for await (const part of stream.stream("speech", { audio })) console.log(part.outputs);
 *     for await (const chunk of stream.chat("smollm2", messages)) console.log(chunk.choices[0]?.delta.content);
 *
 * No dependencies. The protocol is in docs/websocket.md. A key in a page is seen by whoever opens the page: give it a
 * key of its own, with one endpoint, or a short-lived token.
 */

const ARRAYS = {
  BOOL: Uint8Array, UINT8: Uint8Array, INT8: Int8Array, UINT16: Uint16Array, INT16: Int16Array, FP16: Uint16Array,
  BF16: Uint16Array, UINT32: Uint32Array, INT32: Int32Array, FP32: Float32Array, UINT64: BigUint64Array,
  INT64: BigInt64Array, FP64: Float64Array,
};
const DATATYPES = new Map([
  [Float32Array, "FP32"], [Float64Array, "FP64"], [Int8Array, "INT8"], [Uint8Array, "UINT8"], [Int16Array, "INT16"],
  [Uint16Array, "UINT16"], [Int32Array, "INT32"], [Uint32Array, "UINT32"], [BigInt64Array, "INT64"],
  [BigUint64Array, "UINT64"],
]);
const CREDIT = 8;
const DEAD_MS = 50_000; // the server pings after 20 s of silence
const OPEN_MS = 10_000;
const SLACK_MS = 5_000;
const GENERATION_MS = 3_600_000;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** What went wrong; `code` as in docs/websocket.md, or "closed" when there is no connection (any more). lastToken: with
 * "replica_lost" in the middle of a text, the index of the last token that came. */
export class SerinusError extends Error {
  constructor(message, code, retryAfterS = null, lastToken = null) {
    super(message);
    this.name = "SerinusError";
    this.code = code;
    this.retryAfterS = retryAfterS;
    this.lastToken = lastToken;
  }
}

/** An input: a typed array, for BYTES an array of strings or Uint8Arrays. */
export function tensor(datatype, shape, data) {
  if (datatype !== "BYTES" && !(datatype in ARRAYS)) throw new SerinusError(`no datatype ${datatype}`, "invalid_input");
  return { datatype, shape, data };
}

function bytesOf(name, { datatype, data }) {
  if (datatype !== "BYTES") {
    const array = ArrayBuffer.isView(data) ? data : ARRAYS[datatype].from(data);
    return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  }
  const items = Array.from(data, (item) => (typeof item === "string" ? encoder.encode(item) : item));
  const whole = new Uint8Array(items.reduce((size, item) => size + 4 + item.length, 0));
  const view = new DataView(whole.buffer);
  let at = 0;
  for (const item of items) {
    view.setUint32(at, item.length, true);
    whole.set(item, at + 4);
    at += 4 + item.length;
  }
  return whole;
}

function asTensor(name, given) {
  if (given && given.datatype) return given;
  const datatype = DATATYPES.get(given?.constructor);
  if (!datatype) throw new SerinusError(`input '${name}' is neither a typed array nor a tensor()`, "invalid_input");
  return { datatype, shape: [given.length], data: given };
}

function frameOf(head, inputs) {
  const parts = [];
  const tensors = Object.entries(inputs).map(([name, given]) => {
    const { datatype, shape, data } = asTensor(name, given);
    const bytes = bytesOf(name, { datatype, data });
    parts.push(bytes);
    return { name, datatype, shape, parameters: { binary_data_size: bytes.length } };
  });
  const text = encoder.encode(JSON.stringify({ ...head, inputs: tensors }));
  const frame = new Uint8Array(4 + text.length + parts.reduce((size, part) => size + part.length, 0));
  new DataView(frame.buffer).setUint32(0, text.length, true);
  frame.set(text, 4);
  let at = 4 + text.length;
  for (const part of parts) {
    frame.set(part, at);
    at += part.length;
  }
  return frame;
}

function dataOf(datatype, bytes) {
  if (datatype !== "BYTES") return new ARRAYS[datatype](bytes);
  const view = new DataView(bytes);
  const found = [];
  for (let at = 0; at < bytes.byteLength; ) {
    const size = view.getUint32(at, true);
    found.push(new Uint8Array(bytes, at + 4, size));
    at += 4 + size;
  }
  return found;
}

function answerOf(frame, rest) {
  const outputs = {};
  let at = 0;
  for (const { name, datatype, shape, parameters } of frame.outputs) {
    const end = at + parameters.binary_data_size;
    outputs[name] = { datatype, shape, data: dataOf(datatype, rest.slice(at, end)) };
    at = end;
  }
  return {
    outputs, model: frame.model_name, version: frame.model_version, arm: frame.parameters?.rollout_arm ?? "",
    isLast: frame.final ?? true,
  };
}

function parse(message) {
  if (typeof message === "string") return [JSON.parse(message), new ArrayBuffer(0)];
  const size = new DataView(message).getUint32(0, true);
  return [JSON.parse(decoder.decode(new Uint8Array(message, 4, size))), message.slice(4 + size)];
}

function waiter() {
  let resolve;
  return { promise: new Promise((found) => { resolve = found; }), resolve };
}

/** The frames of one request, as they come. */
class Frames {
  #waiting = [];
  #wake = null;

  put(found) {
    this.#waiting.push(found);
    this.#wake?.();
  }

  async next(signal, untilMs) {
    while (!this.#waiting.length) {
      const left = untilMs - Date.now();
      if (signal?.aborted) throw new SerinusError("The caller cancelled the request", "cancelled");
      if (left <= 0) throw new SerinusError("Request timeout expired", "deadline_exceeded");
      const { promise, resolve } = waiter();
      this.#wake = resolve;
      const timer = setTimeout(resolve, left);
      signal?.addEventListener("abort", resolve);
      await promise;
      this.#wake = null;
      clearTimeout(timer);
      signal?.removeEventListener("abort", resolve); // a long stream waits many times with one signal
    }
    const found = this.#waiting.shift();
    if (found instanceof SerinusError) throw found;
    return found;
  }
}

/** One connection. `onclose` is called once with a SerinusError when it ends by itself. */
export class SerinusStream {
  #socket = null;
  #frames = new Map();
  #number = 0;
  #heardMs = 0;
  #watch = null;
  #isClosing = false;
  #options;
  #url;
  onclose = () => {};

  constructor(url, options = {}) {
    const base = url.replace(/^http/, "ws").replace(/\/+$/, "");
    this.#url = /\/v2\/./.test(base) ? base : `${base}/v2/stream`;
    this.#options = { key: "", timeoutMs: 30_000, reconnect: false, ...options };
  }

  /** Connects. options: key (an API key or token), timeoutMs, reconnect (off; requests under way fail in any case). */
  static async connect(url, options = {}) {
    const stream = new SerinusStream(url, options);
    await stream.open();
    return stream;
  }

  open() {
    const { key } = this.#options;
    const socket = new WebSocket(this.#url, key ? ["serinus.v1", `serinus.key.${key}`] : ["serinus.v1"]);
    socket.binaryType = "arraybuffer";
    return new Promise((resolve, reject) => {
      const refused = new SerinusError("The gateway refused the connection, or cannot be reached", "closed");
      const timer = setTimeout(() => { socket.close(); reject(refused); }, OPEN_MS);
      socket.onopen = () => {
        clearTimeout(timer);
        this.#opened(socket);
        resolve(this);
      };
      socket.onclose = () => { clearTimeout(timer); reject(refused); };
    });
  }

  #opened(socket) {
    this.#socket = socket;
    this.#heardMs = Date.now();
    socket.onmessage = (event) => this.#came(event.data);
    socket.onclose = (event) => this.#closed(event);
    this.#watch = setInterval(() => Date.now() - this.#heardMs > DEAD_MS && socket.close(4000, "silent"), 5000);
  }

  #came(message) {
    this.#heardMs = Date.now();
    const [frame, rest] = parse(message);
    if (frame.type === "ping") {
      this.#send('{"type":"pong"}');
      return;
    }
    const found =
      "error" in frame ? new SerinusError(frame.error, frame.code, frame.retry_after_s, frame.last_token) : [frame, rest];
    this.#frames.get(frame.id)?.put(found);
  }

  async #closed(event) {
    clearInterval(this.#watch);
    this.#socket = null;
    const error = new SerinusError(`The connection was closed: ${event.code} ${event.reason}`, "closed", 1);
    for (const frames of this.#frames.values()) frames.put(error);
    if (this.#isClosing) return;
    for (let waitMs = 500; this.#options.reconnect && !this.#isClosing; waitMs = Math.min(2 * waitMs, 30_000)) {
      await new Promise((resolve) => setTimeout(resolve, waitMs * (0.5 + Math.random() / 2)));
      try {
        await this.open();
        return;
      } catch { /* the next try waits longer */ }
    }
    this.onclose(error);
  }

  #send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) throw new SerinusError("The connection is not open", "closed");
    this.#socket.send(message);
  }

  /** Ends the connection and whatever is under way on it. */
  close() {
    this.#isClosing = true;
    this.#socket?.close(1000);
  }

  /** One answer: {outputs: {name: {datatype, shape, data}}, model, version, arm}. options: version, parameters,
   * session, outputs, timeoutMs, signal (an AbortSignal: it cancels). */
  async infer(model, inputs, options = {}) {
    for await (const answer of this.#answers(model, inputs, options, null)) {
      if (!answer.isLast) throw new SerinusError(`model '${model}' gives several answers: use stream()`, "invalid_input");
      return answer;
    }
  }

  /** Every answer as it comes; leaving the loop cancels. At most `credit` answers lie here untaken. */
  async *stream(model, inputs, options = {}) {
    for await (const answer of this.#answers(model, inputs, options, options.credit ?? CREDIT)) {
      if (Object.keys(answer.outputs).length) yield answer;
    }
  }

  async *#answers(model, inputs, options, credit) {
    const head = this.#head(model, options);
    if (credit !== null) head.credit = credit;
    let isOver = false;
    try {
      const frames = this.#begin(head.id, frameOf(head, inputs));
      while (!isOver) {
        const answer = answerOf(...(await this.#next(frames, head.id, options)));
        isOver = answer.isLast;
        yield answer;
        if (!isOver && credit !== null) this.#send(JSON.stringify({ type: "credit", id: head.id, n: 1 }));
      }
    } finally {
      this.#end(head.id, isOver);
    }
  }

  async #next(frames, id, options) {
    const timeoutMs = (options.timeoutMs ?? this.#options.timeoutMs) + SLACK_MS;
    return frames.next(options.signal, Date.now() + timeoutMs);
  }

  /** Values by name in, values by name out. */
  async generate(model, values, options = {}) {
    const head = this.#head(model, options);
    let isOver = false;
    try {
      const frames = this.#begin(head.id, JSON.stringify({ ...values, ...head, type: "generate" }));
      const [{ id, type, final, ...found }] = await this.#next(frames, head.id, options);
      isOver = final ?? true;
      return found;
    } finally {
      this.#end(head.id, isOver);
    }
  }

  /** A chat's chunks as OpenAI's API has them. options: body (temperature, tools, ...), version, credit, timeoutMs (an
   * hour), signal. Leaving the loop, or the signal, ends the generation. */
  chat(model, messages, options = {}) {
    return this.#chunks("chat", { ...options.body, model, messages }, options);
  }

  /** As `chat`, of a plain prompt. */
  completion(model, prompt, options = {}) {
    return this.#chunks("completion", { ...options.body, model, prompt }, options);
  }

  async *#chunks(type, body, given) {
    const options = { timeoutMs: GENERATION_MS, ...given };
    const head = { ...this.#head(body.model, options), type, credit: options.credit ?? CREDIT, body };
    let isOver = false;
    try {
      const frames = this.#begin(head.id, JSON.stringify(head));
      for (;;) {
        const [frame] = await this.#next(frames, head.id, options);
        isOver = frame.type === "done";
        if (isOver) return;
        yield frame.data;
        this.#send(JSON.stringify({ type: "credit", id: head.id, n: 1 }));
      }
    } finally {
      this.#end(head.id, isOver);
    }
  }

  /** `metadata`, `config`, `stats`: what REST answers; `ready`: true or false. */
  async ask(verb, model = "", options = {}) {
    const head = { type: verb, id: this.#id(), model, version: options.version };
    try {
      const frames = this.#begin(head.id, JSON.stringify(head));
      const [frame] = await this.#next(frames, head.id, options);
      return verb === "ready" ? frame.ready : frame.body;
    } finally {
      this.#end(head.id, true);
    }
  }

  #id() {
    this.#number += 1;
    return String(this.#number);
  }

  #head(model, { version, parameters, session, outputs, timeoutMs = this.#options.timeoutMs }) {
    const head = { id: this.#id(), model, parameters: { ...parameters, timeout: Math.round(timeoutMs * 1000) } };
    if (version !== undefined) head.version = version;
    if (session) head.session = session;
    if (outputs) head.outputs = outputs.map((name) => ({ name }));
    return head;
  }

  #begin(id, message) {
    const frames = new Frames();
    this.#frames.set(id, frames);
    this.#send(message);
    return frames;
  }

  #end(id, isOver) {
    this.#frames.delete(id);
    if (!isOver && this.#socket?.readyState === WebSocket.OPEN) this.#send(JSON.stringify({ type: "cancel", id }));
  }
}
