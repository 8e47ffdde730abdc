// An answer that streams: what came since the last animation frame is appended at once, as text and never as markup.
// Tokens with probabilities are spans of their own, so that pointing at one can show what else the model thought of.
import { el } from "./dom.js";
import { count, ms } from "./format.js";

const MAX_SPANS = 4096; // a longer answer goes on as plain text: the page stays quick
const MAX_TEXT_CHARS = 4096;
const RATE_MS = 20; // a shorter time says nothing about speed
const HIDDEN_MS = 250; // a hidden tab has no animation frames

export const tokensOf = new WeakMap(); // span -> its tokens

const nextFrame = (work) => (document.hidden ? setTimeout(work, HIDDEN_MS) : requestAnimationFrame(work));

// OpenAI's two forms of log-probabilities as one: [{token, logprob, top: [{token, logprob}]}].
function chancesOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content.map(({ token, logprob, top_logprobs }) => ({ token, logprob, top: top_logprobs ?? [] }));
  return (logprobs.tokens ?? []).map((token, at) => ({
    token,
    logprob: logprobs.token_logprobs[at],
    top: Object.entries(logprobs.top_logprobs?.[at] ?? {}).map(([text, logprob]) => ({ token: text, logprob })),
  }));
}

function levelOf(tokens) {
  const least = Math.exp(Math.min(...tokens.map((one) => one.logprob ?? 0)));
  return least >= 0.5 ? "" : least >= 0.2 ? " low" : " lower";
}

export class Answer {
  // host: where it stands. moved: called after each append. waits: what is said until the first token comes.
  constructor(host, { name, moved, waits }) {
    Object.assign(this, { moved, waits, content: "", thought: "", tokens: 0, spans: 0, waiting: "", held: [], marks: { begun: performance.now(), first: null, last: null }, finish: null, asked: false });
    this.text = el("div", { class: "text" });
    this.thinking = el("div", { class: "thought" });
    this.thoughts = el("details", { class: "thoughts", hidden: true }, el("summary", {}, "Thoughts"), this.thinking);
    this.figures = el("footer", {}, el("span", {}, waits));
    this.node = el("article", { class: "turn theirs", "aria-busy": "true" }, el("h3", {}, name), this.thoughts, this.text, this.figures);
    host.append(this.node);
  }

  // One chunk of OpenAI's API.
  take(chunk) {
    if (chunk.usage) { this.tokens = chunk.usage.completion_tokens; this.prompt = chunk.usage.prompt_tokens; }
    const [choice] = chunk.choices;
    if (!choice) return;
    const said = choice.delta?.content ?? choice.text ?? "";
    const thought = choice.delta?.reasoning ?? "";
    const chances = chancesOf(choice.logprobs);
    this.finish = choice.finish_reason ?? this.finish;
    if (said || thought || chances.length) {
      this.marks.last = performance.now();
      this.marks.first ??= this.marks.last;
    }
    this.content += said;
    this.thought += thought;
    this.waiting += said;
    this.held.push(...chances);
    this.later();
  }

  later() {
    if (this.asked) return;
    this.asked = true;
    nextFrame(() => { this.asked = false; this.flush(); });
  }

  flush({ whole = false } = {}) {
    if (this.thought && this.thinking.textContent.length !== this.thought.length) {
      this.thoughts.hidden = false;
      this.thinking.append(this.thought.slice(this.thinking.textContent.length));
    }
    const fresh = document.createDocumentFragment();
    this.cut(fresh, whole);
    if (fresh.childNodes.length) this.text.append(fresh);
    this.figures.firstChild.textContent = this.measured();
    this.moved();
  }

  // Text and tokens side by side: a token whose text is next is a span. Where they differ (half a character, a marker
  // that is not shown), the rest becomes one span of several tokens. Text that lags behind its token waits for the rest.
  cut(fresh, whole) {
    while (this.held.length && this.waiting && this.spans < MAX_SPANS) {
      const [{ token }] = this.held;
      if (token && this.waiting.startsWith(token)) {
        this.span(fresh, token, [this.held.shift()]);
      } else if (!whole && token.startsWith(this.waiting)) {
        return;
      } else {
        this.span(fresh, this.waiting, this.held.splice(0));
      }
    }
    if (this.spans >= MAX_SPANS) this.held = [];
    this.plain(fresh);
  }

  span(fresh, text, tokens) {
    const node = el("span", { class: `token${levelOf(tokens)}` }, text);
    tokensOf.set(node, tokens);
    fresh.append(node);
    if (!this.spans) for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Answer: left and right arrow go through its tokens"]]) this.text.setAttribute(name, value);
    this.spans += 1;
    this.waiting = this.waiting.slice(text.length);
  }

  plain(fresh) {
    if (!this.waiting) return;
    const last = fresh.lastChild ?? this.text.lastChild;
    if (last?.nodeType === Node.TEXT_NODE && last.length < MAX_TEXT_CHARS) last.appendData(this.waiting);
    else fresh.append(this.waiting);
    this.waiting = "";
  }

  measured() {
    const { begun, first, last } = this.marks;
    if (first === null) return this.waits;
    const perSecond = this.tokens > 1 && last - first > RATE_MS ? `${count(((this.tokens - 1) / (last - first)) * 1000)} tokens/s` : null;
    return [`first token ${ms(first - begun)}`, perSecond, `${this.tokens} token${this.tokens === 1 ? "" : "s"}`].filter(Boolean).join(" · ");
  }

  // how: a word on how it ended, or "". trouble: a note about what went wrong, or null.
  end({ how = "", trouble = null } = {}) {
    this.flush({ whole: true });
    this.node.removeAttribute("aria-busy");
    if (this.marks.first === null) this.figures.remove();
    else if (how) this.figures.append(el("span", { class: "chip" }, how));
    if (!this.content) this.text.remove();
    if (trouble) this.node.append(trouble);
    this.moved();
  }
}
