// A form out of the model's signature: sends one Open Inference Protocol request through the console to the gateway
// and shows the answer, its latency and which version gave it.
import { csrf, dataOf, el, icon, toast } from "../lib/dom.js";
import { ms } from "../lib/format.js";
import { meter } from "../lib/meter.js";

const SHOWN_VALUES = 12;

class BadInput extends Error {}

function flat(value) {
  return Array.isArray(value) ? value.flatMap(flat) : [value];
}

function shapeOf(value) {
  return Array.isArray(value) ? [value.length, ...(value.length ? shapeOf(value[0]) : [])] : [];
}

// The shape that `data` has under a signature's shape with free dimensions (-1).
export function fit(spec, nested) {
  const values = flat(nested);
  const known = spec.shape.filter((size) => size >= 0).reduce((product, size) => product * size, 1);
  const free = spec.shape.filter((size) => size < 0).length;
  const depth = shapeOf(nested);
  if (depth.length === spec.shape.length) return { shape: depth, values };
  if (free > 1) throw new BadInput(`${spec.name}: write nested lists of ${spec.shape.length} levels, its shape has ${free} free dimensions.`);
  if (free ? values.length % known : values.length !== known) throw new BadInput(`${spec.name}: ${values.length} values do not fill the shape ${JSON.stringify(spec.shape)}.`);
  return { shape: spec.shape.map((size) => (size < 0 ? values.length / known : size)), values };
}

function read(spec, text) {
  if (spec.datatype === "BYTES") {
    const lines = text.split("\n").filter((line) => line.trim());
    if (!lines.length) throw new BadInput(`${spec.name}: write at least one line of text.`);
    return { shape: spec.shape.length > 1 ? [lines.length, ...spec.shape.slice(1).map((size) => Math.max(1, size))] : [lines.length], values: lines };
  }
  let nested;
  try {
    nested = JSON.parse(text.trim().startsWith("[") ? text : `[${text}]`);
  } catch {
    throw new BadInput(`${spec.name}: write numbers separated by commas, or a JSON list.`);
  }
  return fit(spec, nested);
}

function fill(spec, how) {
  const size = spec.shape.map((one) => (one < 0 ? 1 : one)).reduce((product, one) => product * one, 1);
  const whole = /INT/.test(spec.datatype);
  const value = () => (spec.datatype === "BOOL" ? (how === "random" ? Math.random() > 0.5 : false) : how !== "random" ? 0 : whole ? Math.floor(Math.random() * 10) : Number(Math.random().toFixed(3)));
  return Array.from({ length: Math.min(size, 65_536) }, value).join(", ");
}

export function mount(island) {
  const { url, golden, inputs, labels, max_batch_size: batched } = dataOf(island);
  const raw = island.querySelector("[data-raw]");
  const result = island.querySelector("[data-result]");
  const send = island.querySelector("[data-send]");
  const area = (spec) => island.querySelector(`textarea[data-input="${CSS.escape(spec.name)}"]`);
  const isRaw = () => !island.querySelector("[data-panel=raw]").hidden;
  const compose = () => ({ inputs: inputs.map((spec) => { const { shape, values } = read(spec, area(spec).value); return { name: spec.name, datatype: spec.datatype, shape, data: values }; }) });
  for (const spec of inputs) if (spec.datatype !== "BYTES" && !area(spec).value) area(spec).value = fill(spec, "random");
  island.addEventListener("click", (event) => {
    const button = event.target.closest("[data-fill]");
    if (button) { const spec = inputs.find((one) => one.name === button.dataset.name); area(spec).value = fill(spec, button.dataset.fill); }
    if (event.target.closest("[data-tab-raw]")) try { raw.value = JSON.stringify(compose(), null, 1); } catch { /* what was typed stays */ }
  });
  send.addEventListener("click", async () => {
    send.disabled = true;
    try {
      const body = isRaw() ? JSON.parse(raw.value) : compose();
      const version = island.querySelector("[data-version]")?.value;
      const answer = await (await post(url, { request: body, version: version || null })).json();
      result.replaceChildren(...(answer.error ? [failure(answer.error)] : show(answer, labels, batched)));
      if (golden && !answer.error) result.append(keep(golden, body, answer));
    } catch (error) {
      result.replaceChildren(failure({ message: error instanceof SyntaxError ? "This is not valid JSON." : error instanceof BadInput ? error.message : "The console did not answer." }));
    }
    send.disabled = false;
  });
}

const post = (url, body) => fetch(url, { method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json", "X-CSRFToken": csrf() }, body: JSON.stringify(body) });

// A button that saves what was asked and answered: the model's next versions must answer it alike.
function keep(url, request, { response, version }) {
  const button = el("button", { type: "button", class: "button small" }, icon("check"), "Save as golden input");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const saved = await (await post(url, { request, response, version })).json();
      if (saved.error) throw new BadInput(saved.error.message);
      button.replaceWith(el("p", { class: "sub", role: "status" }, `Saved as ${saved.name}. Every candidate must answer it alike before it gets traffic.`));
    } catch (error) {
      button.disabled = false;
      toast(error instanceof BadInput ? error.message : "The console did not answer.", "error");
    }
  });
  return el("div", { class: "cluster" }, button);
}

function failure({ message, remedy, code }) {
  return el("div", { class: "note bad", role: "alert" }, el("span", {}, "✕"), el("div", {}, el("b", {}, message), remedy ? el("p", {}, remedy) : null, code ? el("p", { class: "sub mono" }, code) : null));
}

function show(answer, labels, batched) {
  const head = el("div", { class: "cluster" }, el("span", { class: "badge good" }, "Answered"), el("span", {}, ms(answer.latency_ms)), el("span", { class: "muted" }, `version ${answer.version ?? "?"}`), answer.arm ? el("span", { class: "chip" }, answer.arm) : null);
  const outputs = answer.response.outputs.map((output) => el("div", { class: "stack tight" }, el("h3", {}, output.name, " ", el("span", { class: "sub mono" }, `${output.datatype} [${output.shape.join(", ")}]`)), ...picture(output, labels, batched)));
  const json = el("details", {}, el("summary", {}, "Whole answer as JSON"), el("pre", { class: "code", tabindex: "0" }, JSON.stringify(answer.response, null, 1).slice(0, 20_000)));
  return [head, timeline(answer.timeline ?? []), ...outputs, json].filter(Boolean);
}

const PARTS = { console: "Console and the way to the gateway", gateway: "Gateway: reading, admission, routing", network: "Way to the replica and back", queue: "Queue at the replica", input: "Batch assembly", compute: "Compute", output: "Encode" };

// One bar of the whole time; the numbers stand below it, in the order of time.
function timeline(parts) {
  const whole = parts.reduce((sum, one) => sum + one.ms, 0);
  if (!whole) return null;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "bar thick");
  svg.setAttribute("aria-hidden", "true");
  let at = 0;
  const rows = parts.map(({ part, ms: took }) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ x: `${(100 * at) / whole}%`, width: `${(100 * took) / whole}%`, height: "100%", class: `t-${part}` })) rect.setAttribute(key, value);
    svg.append(rect);
    at += took;
    return el("div", {}, el("span", {}, el("i", { class: `swatch t-${part}`, "aria-hidden": "true" }), ` ${PARTS[part] ?? part}`), el("span", {}), el("span", {}, ms(took)));
  });
  return el("details", { class: "timeline", open: true }, el("summary", {}, "Where the time went"), el("div", { class: "stack tight" }, svg, el("div", { class: "cells" }, ...rows)));
}

// Numbers of the first item as bars; the best class first when the model has labels or the vector looks like scores.
function picture(output, labels, batched) {
  const perItem = output.shape.slice(batched ? 1 : 0).reduce((product, size) => product * size, 1) || 1;
  const first = flat(output.data).slice(0, perItem);
  if (output.datatype === "BYTES") return [el("pre", { class: "code", tabindex: "0" }, first.join("\n"))];
  const scores = first.length > 1 && first.length <= 64;
  const best = scores ? first.indexOf(Math.max(...first)) : -1;
  const name = (index) => labels[index] ?? `[${index}]`;
  const order = first.map((value, index) => [value, index]);
  if (scores) order.sort((a, b) => b[0] - a[0]);
  // Logits may all be negative: the bar of the best class is the longest all the same.
  const low = scores ? Math.min(0, ...first) : 0;
  const top = Math.max(...first.map((value) => (scores ? value - low : Math.abs(value))), 1e-12);
  const share = (value) => (scores ? value - low : Math.abs(value)) / top;
  const cells = el("div", { class: "cells" }, ...order.slice(0, SHOWN_VALUES).map(([value, index]) => el("div", {}, el("span", {}, name(index)), meter(share(value)), el("span", {}, Number(value).toPrecision(4)))));
  const more = first.length > SHOWN_VALUES ? el("p", { class: "sub" }, `${SHOWN_VALUES} of ${first.length} values of the first item`) : null;
  return [scores ? el("p", { class: "answer" }, el("b", {}, name(best)), el("span", { class: "muted" }, "largest value")) : null, cells, more].filter(Boolean);
}
