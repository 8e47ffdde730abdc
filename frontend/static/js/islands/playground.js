// Chats with language models on one connection to the console, which passes them on to the gateway. One pane, or two
// side by side: both get every message, and each keeps a history of its own. Whom a pane asks stands in the address.
import { BadSetting, TOP, curlOf, messagesOf, pythonOf, settingsOf } from "../lib/chat-body.js";
import { dataOf, el } from "../lib/dom.js";
import { ChatPane } from "../lib/chat-pane.js";
import { TokenTip } from "../lib/token-tip.js";
import { SerinusStream } from "../public/serinus-stream.js";

const SIDES = ["a", "b"];

class Playground {
  constructor(island) {
    Object.assign(this, { island, config: dataOf(island), panes: [], running: 0, stream: null, stale: false });
    this.settings = this.at("settings");
    this.composer = this.at("composer");
    this.said = this.at("said");
    this.tip = new TokenTip(this.at("panes"), (text) => { this.said.textContent = text; });
    const wanted = new URLSearchParams(location.search);
    this.add(wanted.get("a"));
    if (wanted.has("b")) this.add(wanted.get("b"));
    this.listen();
    this.show();
    if (matchMedia("(min-width: 861px)").matches) this.composer.elements.say.focus();
  }

  at(name) { return this.island.querySelector(`[data-${name}]`); }

  listen() {
    const { say } = this.composer.elements;
    say.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.composer.requestSubmit();
    });
    this.composer.addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    this.settings.addEventListener("submit", (event) => event.preventDefault());
    this.settings.addEventListener("reset", () => setTimeout(() => this.show()));
    for (const form of [this.settings, this.composer]) form.addEventListener("input", () => this.show());
    this.at("stop").addEventListener("click", () => { this.stop(); this.refocus(); });
    this.at("clear").addEventListener("click", () => { this.stop(); for (const pane of this.panes) pane.clear(); this.show(); this.refocus(); });
    this.at("compare").addEventListener("click", () => this.compare());
    this.at("panes").addEventListener("change", () => { this.remember(); this.show(); });
  }

  add(wanted) {
    this.panes.push(new ChatPane(this, wanted, SIDES[this.panes.length]));
    this.at("panes").append(this.panes.at(-1).node);
    this.at("compare").setAttribute("aria-pressed", String(this.panes.length > 1));
    this.island.classList.toggle("two", this.panes.length > 1);
  }

  compare() {
    if (this.panes.length > 1) {
      this.panes.pop().remove();
      this.at("compare").setAttribute("aria-pressed", "false");
      this.island.classList.remove("two");
    } else {
      this.add(this.other());
    }
    this.remember();
    this.show();
  }

  // Whom to compare with: another version of the same endpoint, else another endpoint, else the same once more.
  other() {
    const { model, endpoint, version } = this.panes[0].asks;
    const models = ({ name, versions }) => (versions.length > 1 ? versions.map(({ number }) => `${name}@${number}`) : [name]);
    const own = this.config.targets.filter((one) => one.name === endpoint).flatMap(models);
    const rest = this.config.targets.filter((one) => one.name !== endpoint).sort((a, b) => b.ready - a.ready).flatMap(models);
    const news = own.filter((one) => one !== model && (version || one !== own[0]));
    return [...news, ...rest, model][0];
  }

  remember() {
    const query = new URLSearchParams(this.panes.map((pane) => [pane.side, pane.asks.model]));
    history.replaceState(null, "", `?${query}`);
  }

  // The connection, opened when it is first needed and again when it was lost.
  async connection() {
    this.stream ??= SerinusStream.connect(`${location.origin}/ws`, { timeoutMs: 3_600_000 });
    try {
      const stream = await this.stream;
      stream.onclose = () => this.lost();
      return stream;
    } catch (error) {
      this.stream = null;
      throw error;
    }
  }

  lost() { this.stream = null; }

  // Raises what is wrong with a setting to the person's eyes; null then.
  chosen() {
    this.at("schema-said").textContent = "";
    for (const field of this.settings.elements) if (field.setCustomValidity) { field.setCustomValidity(""); field.removeAttribute("aria-invalid"); }
    try {
      const found = settingsOf(this.settings);
      return this.settings.reportValidity() ? found : null;
    } catch (error) {
      if (!(error instanceof BadSetting)) throw error;
      const field = this.settings.elements[error.field];
      field.setAttribute("aria-invalid", "true");
      if (error.field === "schema") { this.at("schema").open = true; this.at("schema-said").textContent = error.message; field.focus(); }
      else { field.setCustomValidity(error.message); field.reportValidity(); }
      return null;
    }
  }

  send() {
    const { say } = this.composer.elements;
    const text = say.value.trim();
    if (!text || this.running) return;
    const chosen = this.chosen();
    if (!chosen) return;
    say.value = "";
    for (const pane of this.panes) this.run(pane, text, chosen);
    this.refocus();
  }

  // The button that was pressed goes away; on a telephone the keyboard stays down.
  refocus() { if (matchMedia("(hover: hover)").matches) this.composer.elements.say.focus(); }

  async run(pane, text, chosen = this.chosen()) {
    if (!chosen) return;
    this.running += 1;
    this.show();
    await pane.ask(text, chosen);
    this.running -= 1;
    this.show();
  }

  stop() { for (const pane of this.panes) pane.stop(); }

  extras() {
    const options = { stream_options: { include_usage: true, continuous_usage_stats: true } };
    return this.settings.elements.chances.checked ? { ...options, logprobs: true, top_logprobs: TOP } : options;
  }

  messages(history) { return messagesOf(this.settings, history); }

  show() {
    const busy = this.running > 0;
    this.at("send").hidden = busy;
    this.at("stop").hidden = !busy;
    if (this.stale) return;
    this.stale = true;
    requestAnimationFrame(() => { this.stale = false; this.lines(); });
  }

  // What "Copy as" shows: the request as it would be sent now; while nothing is written, the last one.
  lines() {
    const [pane] = this.panes;
    let settings = {};
    try { settings = settingsOf(this.settings); } catch { /* a schema that is half written is left out */ }
    const draft = this.composer.elements.say.value.trim() || (pane.history.length ? "" : "Why is the sky blue?");
    const history = draft ? [...pane.history, { role: "user", content: draft }] : pane.history.slice(0, -1);
    const chats = pane.asks.chats;
    const ask = chats ? { messages: this.messages(history) } : { prompt: history.at(-1).content };
    const body = { model: pane.asks.model, ...ask, ...settings };
    const how = { key: !this.config.insecure, chats };
    this.island.querySelector("[data-lines=curl]").textContent = curlOf(this.config.gateway_url, body, how);
    this.island.querySelector("[data-lines=python]").textContent = pythonOf(this.config.gateway_url, body, how);
  }
}

export const mount = (island) => new Playground(island);
