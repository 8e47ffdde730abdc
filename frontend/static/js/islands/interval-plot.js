// One metric's difference between both versions over time, with its interval, zero and the margin. New readings come
// every few seconds; they are asked for when the topic says that there was a new judgement.
import { dataOf, el } from "../lib/dom.js";
import { IntervalChart } from "../lib/interval-chart.js";
import { subscribe } from "../lib/socket.js";

const EVERY_MS = 5000;
const PLAIN = ["drift", "score"];
const share = (value) => (value === null ? "open" : `${value > 0 ? "+" : ""}${(value * 100).toFixed(2)} %`);
const plain = (value) => (value === null ? "open" : `${value > 0 ? "+" : ""}${Number(value.toPrecision(3))}`);

export function mount(island) {
  const { topic, url, candidate } = dataOf(island);
  const select = island.querySelector("[data-metric]");
  const host = island.querySelector("[data-plot]");
  const note = el("p", { class: "muted", role: "status" });
  const chart = new IntervalChart(host, { label: `Difference of version ${candidate} from the stable version over time` });
  host.append(note);
  let asked = 0;
  let timer = 0;
  const load = async () => {
    timer = 0;
    const turn = ++asked;
    const metric = select.value;
    try {
      const answer = await fetch(`${url}?metric=${encodeURIComponent(metric)}`, { headers: { Accept: "application/json" } });
      if (!answer.ok || turn !== asked) return;
      const { points } = await answer.json();
      note.textContent = points.length ? "" : "There is no reading of this metric yet.";
      chart.update(points, PLAIN.includes(metric) ? plain : share);
    } catch {
      note.textContent = "The readings could not be fetched; the next judgement asks again.";
    }
  };
  select.addEventListener("change", load);
  let stamp = null;
  subscribe(topic, (data) => {
    const now = data?.stamps?.judge;
    if (!now || now === stamp) return;
    stamp = now;
    timer ||= setTimeout(load, asked ? EVERY_MS : 0);
  });
  load();
}
