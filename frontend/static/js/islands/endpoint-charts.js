// Requests per second and latency of an endpoint, by version, from the live topic.
import { count, ms } from "../lib/format.js";
import { dataOf } from "../lib/dom.js";
import { LineChart } from "../lib/chart.js";
import { subscribe } from "../lib/socket.js";

// Samples take up to four seconds to arrive; showing what is not whole yet would draw a dip at the right edge.
const LATE_S = 4;

function fold(points, versions) {
  const byTime = new Map();
  for (const point of points) for (const [version, rate, p50, p99] of point.rows) {
    const row = byTime.get(point.at) ?? { at: point.at };
    Object.assign(row, { [`rate${version}`]: rate, [`p50${version}`]: p50, [`p99${version}`]: p99 });
    byTime.set(point.at, row);
  }
  const times = [...byTime.keys()].sort((a, b) => a - b);
  if (!times.length) return [];
  const filled = [];
  const end = Math.max(times.at(-1), Math.floor(Date.now() / 1000) - LATE_S);
  for (let at = times[0]; at <= end; at++) {
    const row = byTime.get(at) ?? { at };
    for (const version of versions) row[`rate${version}`] ??= 0;
    filled.push(row);
  }
  return filled;
}

export function mount(island) {
  const { topic, versions } = dataOf(island);
  const tone = (version) => (versions.indexOf(version) % 4) + 1;
  const rates = () => versions.map((version) => ({ key: `rate${version}`, label: `v${version}`, tone: tone(version) }));
  const quantiles = () => versions.flatMap((version) => [
    { key: `p50${version}`, label: `v${version} p50`, tone: tone(version), dash: true },
    { key: `p99${version}`, label: `v${version} p99`, tone: tone(version) },
  ]);
  const rate = new LineChart(island.querySelector("[data-chart=rate]"), { series: rates(), format: count, label: "Requests per second by version, last five minutes" });
  const latency = new LineChart(island.querySelector("[data-chart=latency]"), { series: quantiles(), format: ms, label: "Latency p50 and p99 by version, last five minutes" });
  subscribe(topic, (data) => {
    if (!data) return;
    for (const point of data.points ?? []) for (const [version] of point.rows) if (!versions.includes(version)) versions.push(version);
    rate.setSeries(rates());
    latency.setSeries(quantiles());
    const points = fold(data.points ?? [], versions);
    rate.update(points);
    latency.update(points);
  });
}
