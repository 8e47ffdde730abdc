// Stages, queue depth and batch sizes of an endpoint, from the live topic.
import { BarChart } from "../lib/bars.js";
import { LineChart } from "../lib/chart.js";
import { dataOf } from "../lib/dom.js";
import { count, ms } from "../lib/format.js";
import { subscribe } from "../lib/socket.js";

const STAGES = ["Queue", "Assembly", "Compute", "Encode"].map((label, place) => ({ key: `s${place}`, label, tone: place + 1 }));
const KEPT_S = 300;

// Batch sizes are counted up to 1, 2, 3, 4, 6, 8, 12, 16 ... rows; 0 stands for what is above the last edge.
function rows(edge) {
  if (!edge) return "> 1024";
  const isPower = (edge & (edge - 1)) === 0;
  const low = edge <= 2 ? edge : (isPower ? edge * 0.75 : (edge * 2) / 3) + 1;
  return low === edge ? String(edge) : `${low}–${edge}`;
}

export function mount(island) {
  const { topic } = dataOf(island);
  const chart = (name) => island.querySelector(`[data-chart=${name}]`);
  const stages = new LineChart(chart("stages"), { series: STAGES, format: ms, stacked: true, label: "Mean time of a request by stage, last five minutes" });
  const depth = new LineChart(chart("depth"), { series: [{ key: "depth", label: "Requests waiting", tone: 1 }], format: count, label: "Requests waiting at replicas since this page was opened", empty: "No figure yet" });
  const batches = new BarChart(chart("batches"), { format: count, label: "Requests by the size of the batch they ran in, last minute", head: "Batch size, rows", value: "Requests" });
  let waiting = null;
  const seen = [];
  subscribe(topic, (data) => {
    if (!data) { waiting = null; return; }
    waiting = data.queue_depth ?? null;
    stages.update((data.points ?? []).filter((point) => point.stages).map((point) => ({ at: point.at, ...Object.fromEntries(point.stages.map((value, place) => [`s${place}`, value])) })));
    batches.update((data.batches ?? []).map(([edge, requests]) => ({ label: rows(edge), value: requests })));
  });
  // Only changes are sent, so the line is drawn from what holds each second.
  setInterval(() => {
    if (document.hidden || waiting === null) return;
    const at = Math.floor(Date.now() / 1000);
    seen.push({ at, depth: waiting });
    while (seen[0].at < at - KEPT_S) seen.shift();
    depth.update(seen);
  }, 1000);
}
