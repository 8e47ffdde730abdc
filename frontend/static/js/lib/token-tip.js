// What the model thought of at a token: by pointing, by touch, and with the arrow keys in an answer.
import { el } from "./dom.js";
import { percent } from "./format.js";
import { meter } from "./meter.js";
import { tokensOf } from "./answer.js";

const GAP_PX = 6;
const MAX_LISTED = 4;
const NO_LOGPROB = -9999;

const seen = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(nothing)";
const chance = (logprob) => (logprob === null || logprob <= NO_LOGPROB ? 0 : Math.exp(logprob));

function row(token, logprob, chosen = false) {
  const share = chance(logprob);
  return el("div", { class: chosen ? "chosen" : null }, el("span", { class: "mono" }, seen(token)), meter(share), el("span", {}, percent(share)));
}

function rowsOf(tokens) {
  if (tokens.length > 1) return tokens.slice(0, MAX_LISTED).map((one) => row(one.token, one.logprob, true));
  const [{ token, logprob, top }] = tokens;
  const listed = top.some((one) => one.token === token) ? top : [...top, { token, logprob }];
  return [...listed].sort((a, b) => b.logprob - a.logprob).map((one) => row(one.token, one.logprob, one.token === token));
}

export class TokenTip {
  // within: the part of the page whose tokens it tells of. say: reads a sentence aloud.
  constructor(within, say) {
    this.say = say;
    this.node = el("div", { class: "tip", id: "token-tip", role: "tooltip", hidden: true });
    this.at = null;
    within.append(this.node);
    within.addEventListener("pointerover", (event) => { if (event.pointerType !== "touch") this.show(event.target.closest?.(".token")); });
    within.addEventListener("click", (event) => this.show(event.target.closest?.(".token")));
    within.addEventListener("scroll", () => this.place(), { capture: true, passive: true });
    within.addEventListener("focusout", () => this.hide());
    within.addEventListener("pointerleave", () => this.hide());
    within.addEventListener("keydown", (event) => this.key(event));
  }

  show(token, { aloud = false } = {}) {
    if (token === this.at) return;
    this.hide();
    const tokens = token && tokensOf.get(token);
    if (!tokens) return;
    this.at = token;
    token.classList.add("at");
    token.setAttribute("aria-describedby", "token-tip");
    this.node.replaceChildren(el("div", { class: "cells" }, ...rowsOf(tokens)));
    this.node.hidden = false;
    this.place();
    if (aloud) this.say(tokens.map((one) => `${one.token}, ${percent(chance(one.logprob))}`).join("; "));
  }

  place() {
    if (!this.at) return;
    const box = this.at.getClientRects()[0] ?? this.at.getBoundingClientRect();
    const { width, height } = this.node.getBoundingClientRect();
    const above = box.top - height - GAP_PX;
    this.node.style.left = `${Math.max(GAP_PX, Math.min(box.left, document.documentElement.clientWidth - width - GAP_PX))}px`;
    this.node.style.top = `${above > GAP_PX ? above : box.bottom + GAP_PX}px`;
  }

  hide() {
    this.at?.classList.remove("at");
    this.at?.removeAttribute("aria-describedby");
    this.at = null;
    this.node.hidden = true;
  }

  key(event) {
    if (event.key === "Escape") this.hide();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.classList?.contains("text")) return;
    event.preventDefault();
    const all = [...event.target.querySelectorAll(".token")];
    const now = all.indexOf(this.at);
    const next = all[now < 0 ? (step > 0 ? 0 : all.length - 1) : now + step];
    next?.scrollIntoView({ block: "nearest" });
    this.show(next, { aloud: true });
  }
}
