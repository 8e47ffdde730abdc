// Wakes the islands and serves the small things every page has. No inline code anywhere.
import { ago } from "./lib/format.js";
import { ask, toast } from "./lib/dom.js";
import { watchConnection } from "./lib/socket.js";

const ISLANDS = {
  "batch-form": () => import("./islands/batch-form.js"),
  live: () => import("./islands/live.js"),
  "endpoint-charts": () => import("./islands/endpoint-charts.js"),
  "interval-plot": () => import("./islands/interval-plot.js"),
  "inside-charts": () => import("./islands/inside-charts.js"),
  playground: () => import("./islands/playground.js"),
  rollout: () => import("./islands/rollout.js"),
  "log-tail": () => import("./islands/log-tail.js"),
  split: () => import("./islands/split.js"),
  "try-it": () => import("./islands/try-it.js"),
  uploader: () => import("./islands/uploader.js"),
};

function wake(root) {
  for (const island of root.querySelectorAll("[data-island]:not([data-awake])")) {
    island.dataset.awake = "";
    ISLANDS[island.dataset.island]?.().then((module) => module.mount(island));
  }
  for (const dot of root.querySelectorAll("[data-connection]:not([data-awake])")) {
    dot.dataset.awake = "";
    watchConnection((state) => { dot.dataset.state = state; dot.textContent = state === "open" ? "Live" : state === "connecting" ? "Connecting" : "Not live"; });
  }
  tick(root);
}

function tick(root = document) {
  for (const time of root.querySelectorAll("time[data-ago]")) time.textContent = ago(new Date(time.dateTime));
}

function toggleTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme.trim();
  const now = dark === "light dark" ? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light") : dark;
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("serinus.theme", next); } catch { /* it then holds for this page */ }
}

async function copy(button) {
  const source = button.dataset.copy ? document.getElementById(button.dataset.copy) : button.closest(".copy").querySelector("pre");
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    toast("Copied.", "success");
  } catch {
    getSelection().selectAllChildren(source);
    toast("Press Ctrl+C: this browser does not let a page copy here.");
  }
}

function choose(tab) {
  for (const other of tab.parentElement.querySelectorAll("[role=tab]")) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
}

document.addEventListener("click", (event) => {
  const at = (selector) => event.target.closest?.(selector);
  if (at("[data-theme-toggle]")) toggleTheme();
  if (at("[data-dismiss]")) at(".toast").remove();
  if (at("[data-copy-button]")) copy(at("[data-copy-button]"));
  if (at("[role=tab]")) choose(at("[role=tab]"));
});

document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.("[role=tab]");
  if (!tab || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const all = [...tab.parentElement.querySelectorAll("[role=tab]")];
  const next = all[(all.indexOf(tab) + (event.key === "ArrowRight" ? 1 : -1) + all.length) % all.length];
  choose(next);
  next.focus();
});

// A form, or a button of one, with data-confirm asks first and says what will happen; one that is being sent cannot be
// sent twice.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  const asks = event.submitter?.dataset.confirm ? event.submitter.dataset : form.dataset;
  if (asks.confirm && !form.dataset.agreed) {
    event.preventDefault();
    const agreed = await ask({ title: asks.title ?? "Are you sure?", message: asks.confirm, agree: asks.agree ?? "Continue", danger: "danger" in asks });
    if (!agreed) return;
    form.dataset.agreed = "1";
    form.requestSubmit(event.submitter ?? undefined);
    return;
  }
  if (form.method === "post") setTimeout(() => { for (const button of form.querySelectorAll("button[type=submit]")) button.disabled = true; });
});
addEventListener("pageshow", (event) => { if (event.persisted) for (const button of document.querySelectorAll("button[type=submit]")) button.disabled = false; });

document.addEventListener("htmx:load", (event) => wake(event.detail.elt.parentElement ?? document));
document.addEventListener("htmx:responseError", () => toast("The page could not be updated: the server answered with an error.", "error"));
document.addEventListener("htmx:sendError", () => toast("The page could not be updated: the console does not answer.", "error"));

wake(document);
setInterval(tick, 15_000);
for (const note of document.querySelectorAll(".toast:not(.error)")) setTimeout(() => note.remove(), 9000);
