// One column of the playground: whom it asks, whether that can answer, and the conversation so far.
import { Answer } from "./answer.js";
import { el, icon } from "./dom.js";
import { subscribe } from "./socket.js";

const CREDIT = 64;
const NEAR_PX = 48;
const ENDS = { length: "cut off at the token limit", stop: "", tool_calls: "wants to call a tool" };
const REMEDIES = {
  not_ready: "The endpoint's page says why. Wait until one is ready, or deploy one.",
  replica_lost: "Its replica ended while it answered. Try again: another one, or the same restarted, takes over.",
  overloaded: "Every place is taken. Try again in a moment.",
  deadline_exceeded: "The endpoint's page says whether a replica is ready.",
  closed: "The console does not answer, or your session has ended: reload the page.",
  unauthenticated: "Reload the page and log in.",
};

const AT_ENDPOINT = { not_ready: true, deadline_exceeded: true, replica_lost: true };

const share = (bp) => `${(bp / 100).toFixed(bp % 100 ? 1 : 0)} %`;

function remedyOf({ code, message }) {
  if (code === "context_length_exceeded" || (code === "invalid_input" && /context/.test(message))) return "Clear the conversation, write less, or lower the token limit.";
  return REMEDIES[code] ?? "";
}

export class ChatPane {
  constructor(owner, wanted, side) {
    Object.assign(this, { owner, side, history: [], abort: null, ready: null, leave: () => {} });
    const id = `model-${side}`;
    this.select = el("select", { id }, ...owner.config.targets.flatMap((target) => this.options(target)));
    const known = [...this.select.options].some((one) => one.value === wanted);
    this.select.value = known ? wanted : (owner.config.targets.find((one) => one.ready) ?? owner.config.targets[0]).name;
    this.badge = el("span", { class: "badge" }, "…");
    this.log = el("div", { class: "log", role: "log", "aria-live": "off", tabindex: "0", "aria-label": `Conversation ${side.toUpperCase()}` });
    this.node = el("section", { class: "pane" }, el("header", {}, el("label", { class: "vh", for: id }, `Model ${side.toUpperCase()}`), this.select, this.badge), this.log);
    this.select.addEventListener("change", () => this.follow());
    this.follow();
    this.clear();
  }

  options({ name, versions }) {
    const names = [...new Set(versions.flatMap((one) => one.adapters))].sort();
    const adapters = names.map((adapter) => el("option", { value: `${name}:${adapter}` }, `${name}:${adapter}`));
    if (versions.length === 1) return [el("option", { value: name }, `${name} v${versions[0].number}`), ...adapters];
    return [
      el("option", { value: name }, `${name}, as its traffic is split`),
      ...versions.map(({ number, share_bp: bp }) => el("option", { value: `${name}@${number}` }, `${name} v${number} (${share(bp)})`)),
      ...adapters,
    ];
  }

  // Whom it asks: {model as the API names it, endpoint, adapter, version, name, chats: has a chat template, versions}.
  get asks() {
    const model = this.select.value;
    const [base, adapter] = model.split(":");
    const [endpoint, pinned] = base.split("@");
    const target = this.owner.config.targets.find((one) => one.name === endpoint);
    const versions = target.versions.filter((one) => (!pinned || one.number === Number(pinned)) && (!adapter || one.adapters.includes(adapter)));
    return { model, endpoint, adapter, version: pinned ? Number(pinned) : undefined, versions, name: this.select.selectedOptions[0].textContent.replace(/ \(.*\)$/, ""), chats: versions.every((one) => one.template) };
  }

  follow() {
    this.leave();
    const { endpoint, versions } = this.asks;
    this.tell(versions.reduce((sum, one) => sum + one.ready, 0));
    this.leave = subscribe(`endpoint:${endpoint}`, (data) => {
      if (data?.ready_of) this.tell(this.asks.versions.reduce((sum, one) => sum + (data.ready_of[one.number] ?? 0), 0));
    });
    if (!this.log.querySelector(".turn")) this.empty();
  }

  tell(ready) {
    this.ready = ready;
    this.badge.className = `badge ${ready ? "good" : "bad"}`;
    this.badge.textContent = ready ? `${ready} replica${ready === 1 ? "" : "s"} ready` : "No replica ready";
  }

  clear() {
    this.stop();
    this.history = [];
    this.empty();
  }

  empty() {
    const { chats, versions, endpoint } = this.asks;
    const context = versions[0]?.context;
    this.log.replaceChildren(el("div", { class: "empty" }, icon("chat"), el("h3", {}, "Nothing said yet"),
      el("p", {}, chats ? "Write a message below. The model sees the whole conversation each time." : "This model has no chat template: it goes on with the text that you write, and remembers nothing.", context ? ` Its context holds ${context.toLocaleString("en")} tokens.` : ""),
      el("a", { href: `/endpoints/${encodeURIComponent(endpoint)}/` }, `Endpoint ${endpoint}`)));
  }

  remove() {
    this.stop();
    this.leave();
    this.node.remove();
  }

  stop() { this.abort?.abort(); }

  // The person's words and what the model makes of them; never throws.
  async ask(text, settings) {
    const { name, chats, version, endpoint, adapter } = this.asks;
    this.log.querySelector(".empty")?.remove();
    for (const old of this.log.querySelectorAll("[data-again]")) old.remove(); // the conversation has gone on
    const before = this.history;
    const asked = el("article", { class: "turn mine" }, el("h3", {}, "You"), el("div", { class: "text" }, text));
    this.log.append(asked);
    const answer = new Answer(this.log, { name, moved: () => this.settle(), waits: this.ready ? "Waiting for the first token" : "No replica is ready: waiting for one" });
    this.pinned = true;
    this.settle();
    this.log.onscroll = () => { this.pinned = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_PX; };
    const history = [...before, { role: "user", content: text }];
    const abort = this.abort = new AbortController();
    try {
      const stream = await this.owner.connection();
      const options = { body: this.body({ ...settings, ...this.owner.extras() }, chats), version, signal: abort.signal, credit: CREDIT };
      const model = adapter ? `${endpoint}:${adapter}` : endpoint;
      const chunks = chats ? stream.chat(model, this.owner.messages(history), options) : stream.completion(model, text, options);
      for await (const chunk of chunks) answer.take(chunk);
      answer.end({ how: ENDS[answer.finish] ?? "" });
      this.owner.said.textContent = `${name} has answered: ${answer.measured()}.`;
    } catch (error) {
      const stopped = abort.signal.aborted;
      if (error.code === "closed") this.owner.lost();
      answer.end(stopped ? { how: "stopped" } : { trouble: this.trouble(error, () => { asked.remove(); answer.node.remove(); this.history = before; this.owner.run(this, text); this.owner.refocus(); }) });
      if (stopped) this.owner.said.textContent = "Stopped.";
    }
    this.abort = null;
    // What was cut off is part of the conversation; a question without any answer is not.
    if (answer.content && this.log.contains(answer.node)) this.history = [...history, { role: "assistant", content: answer.content }];
  }

  body(given, chats) {
    if (chats || !given.logprobs) return given;
    const { logprobs, top_logprobs: top, ...rest } = given; // completions have the number alone
    return { ...rest, logprobs: top };
  }

  trouble(error, again) {
    const remedy = remedyOf(error);
    return el("div", { class: "note bad", role: "alert" }, icon("warn"), el("div", { class: "stack tight" }, el("b", {}, error.code ? error.message : "The chat ended unexpectedly."), remedy ? el("p", {}, remedy) : null, error.code in AT_ENDPOINT ? el("p", {}, el("a", { href: `/endpoints/${encodeURIComponent(this.asks.endpoint)}/` }, `Endpoint ${this.asks.endpoint}`)) : null, error.code ? el("p", { class: "sub mono" }, error.code) : null, el("div", { "data-again": true }, el("button", { type: "button", class: "button", onclick: again }, "Try again"))));
  }

  settle() { if (this.pinned) this.log.scrollTop = this.log.scrollHeight; }
}
