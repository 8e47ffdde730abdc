// The newest log lines of a replica or an endpoint, with a filter. Lines are text, never markup. While it is paused, or has
// not been opened, nothing is subscribed, so that nobody reads files for a page that nobody looks at.
import { dataOf, el } from "../lib/dom.js";
import { subscribe } from "../lib/socket.js";

const LEVELS = { DEBUG: 0, INFO: 1, WARNING: 2, ERROR: 3, CRITICAL: 3 };
const KEPT = 500;

export function mount(island) {
  const { topic, open } = dataOf(island);
  const find = (name) => island.querySelector(`[data-${name}]`);
  const [lines, note, level, words, button] = ["lines", "note", "level", "find", "pause"].map(find);
  let held = [];
  let leave = null;
  let last = 0;
  let tail = "";
  const fits = (line) => (LEVELS[line.level] ?? 1) >= Number(level.value) && `${line.from} ${line.text}`.toLowerCase().includes(words.value.toLowerCase());
  const row = (line) => el("div", { class: `line ${line.level.toLowerCase()}` }, el("span", { class: "sub" }, line.from), " ", line.text);

  // New lines are put behind the others; only a new filter or a new beginning draws all of them again.
  function show(fresh, anew) {
    const atEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 24;
    const rows = fresh.filter(fits).map(row);
    if (anew) lines.replaceChildren(...rows);
    else lines.append(...rows);
    while (lines.childElementCount > KEPT) lines.firstElementChild.remove();
    if (atEnd || anew) lines.scrollTop = lines.scrollHeight;
    if (!lines.childElementCount) lines.replaceChildren();
  }

  function take(data, error) {
    if (error) { note.textContent = error.message; return; }
    held = data.points ?? [];
    const newest = held.at(-1)?.at ?? 0;
    const anew = data.tail !== tail || !last;
    tail = data.tail;
    show(anew ? held : held.filter((line) => line.at > last), anew);
    last = newest;
    const nothing = held.length ? (lines.childElementCount ? "" : "No line fits the filter.") : "Nothing has been written yet.";
    note.textContent = (data.missing ?? []).length
      ? data.missing.map(([replica, host, file]) => `The log of replica ${replica} is not on this machine: look into the file logs/${file} in the data folder of ${host || "its host"}.`).join(" ")
      : nothing;
  }

  function toggle() {
    if (leave) { leave(); leave = null; } else { last = 0; leave = subscribe(topic, take); }
    button.textContent = leave ? "Pause" : "Go on";
    button.setAttribute("aria-pressed", String(!leave));
  }

  button.addEventListener("click", toggle);
  for (const input of [level, words]) input.addEventListener("input", () => show(held, true));
  if (open) toggle();
}
