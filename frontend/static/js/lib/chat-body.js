// A chat request out of the settings form, and the same request as a curl line and as a Python program.

const MAX_STOPS = 16;
const WIDTH = 88;
const JSON_WORDS = { null: "null", true: "true", false: "false" };
const PYTHON_WORDS = { null: "None", true: "True", false: "False" };
export const TOP = 5;

export class BadSetting extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

const lines = (text) => text.split("\n").filter(Boolean);
const unset = (value) => value === undefined || value === null || value === "";

function schemaOf(text) {
  if (!text.trim()) return undefined;
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new BadSetting(`This is not valid JSON: ${error.message}`, "schema");
  }
  if (schema === null || typeof schema !== "object" || Array.isArray(schema)) throw new BadSetting("A schema is a JSON object.", "schema");
  return { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
}

// The fields that a person chose; what was left empty is left to the model. Throws BadSetting.
export function settingsOf(form) {
  const { elements } = form;
  const number = (name) => (elements[name].value.trim() === "" ? undefined : Number(elements[name].value));
  const stop = lines(elements.stop.value);
  if (stop.length > MAX_STOPS) throw new BadSetting(`At most ${MAX_STOPS} stop texts.`, "stop");
  const found = { temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed"), stop: stop.length ? stop : undefined, response_format: schemaOf(elements.schema.value) };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => !unset(value)));
}

export function messagesOf(form, history) {
  const system = form.elements.system.value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...history];
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// JSON and Python write values alike but for three words. What fits a line stands on one.
function literal(value, indent, words) {
  if (value === null || typeof value === "boolean") return words[value];
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}  `;
  const parts = Array.isArray(value) ? value.map((one) => literal(one, inner, words)) : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, inner, words)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const whole = `${open}${parts.join(", ")}${close}`;
  return whole.length + indent.length <= WIDTH && !whole.includes("\n") ? whole : `${open}\n${parts.map((part) => inner + part).join(",\n")}\n${indent}${close}`;
}

export function curlOf(url, body, { key, chats = true }) {
  const parts = [`curl -N ${url}/v1/${chats ? "chat/" : ""}completions`];
  if (key) parts.push('-H "Authorization: Bearer $SERINUS_API_KEY"');
  parts.push("-H 'Content-Type: application/json'", `-d ${quoted(literal({ ...body, stream: true }, "  ", JSON_WORDS))}`);
  return parts.join(" \\\n  ");
}

export function pythonOf(url, body, { key, chats = true }) {
  const given = Object.entries({ ...body, stream: true }).map(([name, value]) => `    ${name}=${literal(value, "    ", PYTHON_WORDS)},\n`).join("");
  const secret = key ? 'os.environ["SERINUS_API_KEY"]' : '"none"';
  return [
    ...(key ? ["import os", ""] : []),
    "from openai import OpenAI", "",
    `client = OpenAI(base_url=${JSON.stringify(`${url}/v1`)}, api_key=${secret})`,
    `stream = client.${chats ? "chat." : ""}completions.create(\n${given})`,
    "for chunk in stream:", `    print(chunk.choices[0].${chats ? "delta.content" : "text"} or "", end="", flush=True)`, "print()", "",
  ].join("\n");
}
