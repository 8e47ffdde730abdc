// Binds a topic's facts to the page. [data-bind=key] shows a number, or moves a progress bar; [data-stamp=name] is a fragment of the server's
// HTML that is asked for again when its stamp has changed, so that markup and permissions exist once, on the server.
import { formats } from "../lib/format.js";
import { dataOf } from "../lib/dom.js";
import { subscribe } from "../lib/socket.js";

export function mount(island) {
  const { topic, stamps = {} } = dataOf(island);
  const known = { ...stamps };
  subscribe(topic, (data) => {
    if (!data) return;
    for (const node of island.querySelectorAll("[data-bind]")) {
      const value = data[node.dataset.bind];
      if (value === undefined) continue;
      if (node.tagName === "PROGRESS") node.value = value;
      else node.textContent = (formats[node.dataset.format] ?? formats.text)(value);
    }
    for (const [name, stamp] of Object.entries(data.stamps ?? {})) {
      const fresh = known[name] === undefined;
      const changed = known[name] !== stamp;
      known[name] = stamp;
      if (changed && !fresh) for (const part of island.querySelectorAll(`[data-stamp="${name}"]`)) refresh(part);
    }
  });
}

// A person who is typing or choosing in a fragment, or is asked whether they mean it, is not interrupted: it is renewed
// when they are done. The wait lets a click on a button that takes the focus away come first.
const AGAIN_MS = 400;
const isAsked = () => document.querySelector("dialog[open]") !== null;

document.addEventListener("htmx:beforeSwap", (event) => {
  const part = event.detail.target;
  if (!isAsked() || !part?.matches?.("[data-stamp]")) return;
  event.detail.shouldSwap = false;
  setTimeout(() => refresh(part), AGAIN_MS);
});

function refresh(part) {
  if (!part.isConnected) return;
  if (isAsked()) { setTimeout(() => refresh(part), AGAIN_MS); return; }
  const held = document.activeElement;
  if (part.contains(held) && ["INPUT", "SELECT", "TEXTAREA"].includes(held.tagName)) {
    held.addEventListener("blur", () => setTimeout(() => refresh(part), AGAIN_MS), { once: true });
    return;
  }
  window.htmx.trigger(part, "stale");
}
