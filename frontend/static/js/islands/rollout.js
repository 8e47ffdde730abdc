// A rollout's page: both versions side by side, and questions before a button that say how many requests they move now.
import { count, ms, percent } from "../lib/format.js";
import { dataOf } from "../lib/dom.js";
import { LineChart } from "../lib/chart.js";
import { subscribe } from "../lib/socket.js";

// Samples take up to four seconds to arrive; showing what is not whole yet would draw a dip at the right edge.
const LATE_S = 4;
const ALL = 10_000;
const SIDES = ["stable", "candidate"];

function fold(points) {
  if (!points.length) return [];
  const byTime = new Map(points.map((point) => [point.at, point.arms]));
  const rows = [];
  const end = Math.max(points.at(-1).at, Math.floor(Date.now() / 1000) - LATE_S);
  for (let at = points[0].at; at <= end; at++) {
    const row = { at };
    for (const side of SIDES) {
      const [requests = 0, errors = null, p50 = null, p99 = null] = byTime.get(at)?.[side] ?? [];
      Object.assign(row, { [`rate_${side}`]: requests, [`errors_${side}`]: errors, [`p50_${side}`]: p50, [`p99_${side}`]: p99 });
    }
    rows.push(row);
  }
  return rows;
}

function moved(share, rate) {
  const told = `${share / 100} %`;
  return rate ? `${told} = about ${Number(((rate * share) / ALL).toPrecision(3))} requests/s` : told;
}

export function mount(island) {
  const { topic, stable, candidate } = dataOf(island);
  const label = { stable: `v${stable}`, candidate: `v${candidate}` };
  const tone = { stable: 1, candidate: 2 };
  const lines = (key, name = "") => SIDES.map((side) => ({ key: `${key}_${side}`, label: `${label[side]}${name}`, tone: tone[side], dash: key === "p50" }));
  const chart = (name, series, format, said) => new LineChart(island.querySelector(`[data-chart=${name}]`), { series, format, label: `${said} of both versions, last five minutes` });
  const charts = [
    chart("rate", lines("rate"), count, "Requests per second"),
    chart("errors", lines("errors"), (value) => percent(value, 2), "Share of errors"),
    chart("latency", [...lines("p50", " p50"), ...lines("p99", " p99")], ms, "Latency p50 and p99"),
  ];
  subscribe(topic, (data) => {
    if (!data) return;
    const points = fold(data.points ?? []);
    for (const one of charts) one.update(points);
    for (const button of island.querySelectorAll("button[data-says]")) button.dataset.confirm = button.dataset.says.replaceAll("{rate}", moved(Number(button.dataset.moves), data.rate_per_s));
  });
}
