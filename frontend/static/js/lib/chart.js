// A small line chart on a canvas: several series over time, gaps, hover, dark mode, HiDPI. The figures stand in a table
// beside it too, for those who cannot see it. Colours come from the legend's swatches, which take them from the tokens.
import { el } from "./dom.js";

const PAD = { left: 40, right: 10, top: 10, bottom: 22 };
const SHORTEST_S = 60;
const TIME_STEPS_S = [15, 30, 60, 120, 300];
const LONE_PX = 3;
const tick = (value) => (value >= 10_000 ? `${value / 1000}k` : String(Number(value.toPrecision(3))));

function niceStep(top, lines) {
  const raw = top / lines || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
}

// Points that follow each other without a gap; a second alone is a run of one.
function runs(points, key) {
  const found = [];
  let before = null;
  for (const point of points) {
    if (point[key] === null || point[key] === undefined) { before = null; continue; }
    if (before !== null && point.at - before <= 5) found.at(-1).push(point);
    else found.push([point]);
    before = point.at;
  }
  return found;
}

export class LineChart {
  // series: [{ key, label, tone (1..4), dash }], format: number -> text, window_s: seconds shown, stacked: areas on top
  // of each other instead of lines, empty: what stands where there is no point
  constructor(host, { series, format, window_s = 300, label, stacked = false, empty = "No requests in this time" }) {
    Object.assign(this, { host, series, format, window_s, stacked, empty, points: [], hover: null });
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.legend = el("div", { class: "legend", "aria-hidden": "true" });
    this.table = el("table", {});
    const details = el("details", {}, el("summary", {}, "Figures as a table"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, figures` }, this.table));
    details.addEventListener("toggle", () => this.fillTable());
    this.details = details;
    host.classList.add("chart");
    host.append(this.legend, this.canvas, details);
    this.canvas.addEventListener("pointermove", (event) => { this.hover = event.offsetX; this.later(); });
    this.canvas.addEventListener("pointerleave", () => { this.hover = null; this.later(); });
    new ResizeObserver(() => this.later()).observe(this.canvas);
    new MutationObserver(() => this.later()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
    this.drawLegend();
  }

  setSeries(series) {
    if (JSON.stringify(series) === JSON.stringify(this.series)) return;
    this.series = series;
    this.drawLegend();
  }

  // points: [{ at (unix seconds), [key]: number | null }], ascending by time
  update(points) {
    this.points = points;
    this.later();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  drawLegend() {
    this.swatches = new Map();
    this.values = new Map();
    this.legend.replaceChildren(...this.series.map((one) => {
      const swatch = el("i", { class: `swatch s${one.tone}${one.dash ? " dash" : ""}` });
      const value = el("b", {}, "–");
      this.swatches.set(one.key, swatch);
      this.values.set(one.key, value);
      return el("span", {}, swatch, one.label, value);
    }));
  }

  scale(width, height) {
    const end = Math.max(this.points.at(-1)?.at ?? Date.now() / 1000, Date.now() / 1000 - 3);
    // A young endpoint's figures fill the chart instead of standing at its right edge.
    const age = end - (this.points[0]?.at ?? end);
    const span = Math.min(this.window_s, Math.max(SHORTEST_S, Math.ceil(age / SHORTEST_S) * SHORTEST_S));
    const start = end - span;
    const shown = this.points.filter((point) => point.at >= start);
    const height_of = (point) => { const values = this.series.map((one) => point[one.key] ?? 0); return this.stacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values); };
    const top = Math.max(1e-9, ...shown.map(height_of));
    // Nothing but zeros: one line at 1. A step made for them would take for ever to get there.
    const flat = top <= 1e-9;
    const step = flat ? 1 : niceStep(top * 1.08, 4);
    const high = step * Math.max(1, Math.ceil((top * 1.08) / step));
    return {
      shown, span, end, step, high,
      x: (at) => PAD.left + ((at - start) / span) * (width - PAD.left - PAD.right),
      y: (value) => height - PAD.bottom - (value / high) * (height - PAD.top - PAD.bottom),
    };
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const scale = this.scale(width, height);
    this.drawGrid(pen, scale, width, height);
    if (this.stacked) this.drawAreas(pen, scale);
    else for (const one of this.series) this.drawLine(pen, scale, one);
    this.drawHover(pen, scale, height);
    if (!scale.shown.length) this.drawEmpty(pen, width, height);
    if (this.details.open) this.fillTable();
  }

  drawGrid(pen, scale, width, height) {
    const ink = getComputedStyle(this.legend).color;
    pen.font = `11px ${getComputedStyle(this.legend).fontFamily}`;
    pen.fillStyle = ink;
    pen.strokeStyle = ink;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const top = scale.high;
    const step = scale.shown.length ? scale.step : top;
    for (let value = 0; value <= top + 1e-9; value += step) {
      const y = Math.round(scale.y(value)) + 0.5;
      pen.globalAlpha = value ? 0.12 : 0.35;
      pen.beginPath(); pen.moveTo(PAD.left, y); pen.lineTo(width - PAD.right, y); pen.stroke();
      pen.globalAlpha = 0.85;
      pen.fillText(tick(value), PAD.left - 6, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    const step_s = TIME_STEPS_S.find((step) => scale.span / step <= (width < 420 ? 3 : 6)) ?? scale.span;
    for (let back = 0; back <= scale.span; back += step_s) {
      const text = back === 0 ? "now" : step_s % 60 ? `−${back} s` : `−${back / 60} min`;
      const x = scale.x(scale.end - back);
      pen.textAlign = back === 0 ? "right" : back === scale.span ? "left" : "center";
      pen.fillText(text, x, height - 6);
    }
    pen.globalAlpha = 1;
  }

  drawLine(pen, scale, one) {
    pen.strokeStyle = getComputedStyle(this.swatches.get(one.key)).color;
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    pen.setLineDash(one.dash ? [4, 3] : []);
    pen.fillStyle = pen.strokeStyle;
    pen.beginPath();
    for (const run of runs(scale.shown, one.key)) {
      const at = (point) => [scale.x(point.at), scale.y(point[one.key])];
      if (run.length === 1) {
        const [x, y] = at(run[0]);
        pen.fillRect(x - LONE_PX / 2, y - LONE_PX / 2, LONE_PX, LONE_PX);
        continue;
      }
      run.forEach((point, place) => (place ? pen.lineTo(...at(point)) : pen.moveTo(...at(point))));
    }
    pen.stroke();
    pen.setLineDash([]);
    if (this.hover === null) this.values.get(one.key).textContent = this.format(scale.shown.at(-1)?.[one.key] ?? null);
  }

  // Each second is a column of its own width, so that seconds without requests stay empty.
  drawAreas(pen, scale) {
    const wide = Math.max(1, scale.x(1) - scale.x(0));
    const bottoms = scale.shown.map(() => 0);
    for (const one of this.series) {
      pen.fillStyle = getComputedStyle(this.swatches.get(one.key)).color;
      scale.shown.forEach((point, place) => {
        const value = point[one.key] ?? 0;
        const [low, high] = [scale.y(bottoms[place]), scale.y(bottoms[place] + value)];
        pen.fillRect(scale.x(point.at) - wide, high, wide + 0.3, low - high);
        bottoms[place] += value;
      });
      if (this.hover === null) this.values.get(one.key).textContent = this.format(scale.shown.at(-1)?.[one.key] ?? null);
    }
  }

  drawHover(pen, scale, height) {
    if (this.hover === null || !scale.shown.length) return;
    const nearest = scale.shown.reduce((best, point) => (Math.abs(scale.x(point.at) - this.hover) < Math.abs(scale.x(best.at) - this.hover) ? point : best));
    const x = Math.round(scale.x(nearest.at)) + 0.5;
    pen.strokeStyle = getComputedStyle(this.legend).color;
    pen.globalAlpha = 0.5;
    pen.beginPath(); pen.moveTo(x, PAD.top); pen.lineTo(x, height - PAD.bottom); pen.stroke();
    pen.globalAlpha = 1;
    for (const one of this.series) {
      const value = nearest[one.key];
      this.values.get(one.key).textContent = this.format(value ?? null);
      if (value === null || value === undefined || this.stacked) continue;
      pen.fillStyle = getComputedStyle(this.swatches.get(one.key)).color;
      pen.beginPath(); pen.arc(x, scale.y(value), 3, 0, 7); pen.fill();
    }
  }

  drawEmpty(pen, width, height) {
    pen.fillStyle = getComputedStyle(this.legend).color;
    pen.textAlign = "center";
    pen.font = `13px ${getComputedStyle(this.legend).fontFamily}`;
    pen.fillText(this.empty, width / 2, height / 2 - 4);
  }

  fillTable() {
    if (!this.details.open) return;
    const rows = this.points.slice(-20).reverse();
    this.table.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), ...this.series.map((one) => el("th", { scope: "col", class: "num" }, one.label)))),
      el("tbody", {}, ...rows.map((point) => el("tr", {}, el("td", {}, new Date(point.at * 1000).toLocaleTimeString()), ...this.series.map((one) => el("td", { class: "num" }, this.format(point[one.key] ?? null)))))),
    );
  }
}
