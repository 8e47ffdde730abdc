// A band around an estimate over time on a canvas, above and below zero, with the margin as a dashed line. The figures
// stand in a table beside it. Colours come from the legend's swatches.
import { el } from "./dom.js";

const PAD = { left: 58, right: 10, top: 10, bottom: 22 };
// A wide interval of the first seconds must not flatten the rest: so many margins are shown to each side at most.
const MARGINS = 6;

export class IntervalChart {
  // label: what a listener hears
  constructor(host, { label }) {
    Object.assign(this, { host, points: [], format: String, hover: null });
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.swatches = { band: el("i", { class: "swatch s2" }), margin: el("i", { class: "swatch dash bad-ink" }) };
    this.said = el("b", {}, "");
    this.legend = el("div", { class: "legend", "aria-hidden": "true" }, el("span", {}, this.swatches.band, "difference and its interval"), el("span", {}, this.swatches.margin, "margin"), el("span", {}, this.said));
    this.body = el("tbody", {});
    const head = el("thead", {}, el("tr", {}, ...["Time", "Low", "Difference", "High", "Verdict"].map((name) => el("th", { scope: "col" }, name))));
    this.details = el("details", {}, el("summary", {}, "Figures as a table"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, figures` }, el("table", {}, head, this.body)));
    this.details.addEventListener("toggle", () => this.fillTable());
    host.classList.add("chart");
    host.append(this.legend, this.canvas, this.details);
    this.canvas.addEventListener("pointermove", (event) => { this.hover = event.offsetX; this.later(); });
    this.canvas.addEventListener("pointerleave", () => { this.hover = null; this.later(); });
    new ResizeObserver(() => this.later()).observe(this.canvas);
    new MutationObserver(() => this.later()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
  }

  // points: [{ at (unix seconds), low, high (null: open), difference, margin, verdict }] ascending; format: number -> text
  update(points, format) {
    Object.assign(this, { points, format });
    this.later();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  scale(width, height) {
    const margin = Math.max(...this.points.map((point) => Math.abs(point.margin)), 1e-6);
    const widest = Math.max(...this.points.map((point) => Math.max(Math.abs(point.difference), Math.abs(point.low ?? 0), Math.abs(point.high ?? 0))));
    const reach = Math.min(Math.max(widest * 1.05, margin * 1.5), Math.max(margin * MARGINS, Math.abs(this.points.at(-1).difference) * 1.5));
    const [start, end] = [this.points[0].at, Math.max(this.points.at(-1).at, this.points[0].at + 30)];
    const middle = (PAD.top + height - PAD.bottom) / 2;
    return {
      reach, start, end,
      x: (at) => PAD.left + ((at - start) / (end - start)) * (width - PAD.left - PAD.right),
      y: (value) => middle - (Math.max(-reach, Math.min(reach, value)) / reach) * (middle - PAD.top),
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
    pen.font = `11px ${getComputedStyle(this.legend).fontFamily}`;
    this.ink = getComputedStyle(this.legend).color;
    if (!this.points.length) {
      pen.fillStyle = this.ink;
      pen.textAlign = "center";
      pen.fillText("No readings yet", width / 2, height / 2);
    } else {
      const scale = this.scale(width, height);
      this.drawGrid(pen, scale, width, height);
      this.drawBand(pen, scale);
      this.say(pen, scale, height);
    }
    this.fillTable();
  }

  drawGrid(pen, scale, width, height) {
    pen.fillStyle = pen.strokeStyle = this.ink;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const part of [-1, -0.5, 0, 0.5, 1]) {
      const y = Math.round(scale.y(part * scale.reach)) + 0.5;
      pen.globalAlpha = part ? 0.12 : 0.5;
      pen.beginPath(); pen.moveTo(PAD.left, y); pen.lineTo(width - PAD.right, y); pen.stroke();
      pen.globalAlpha = 0.85;
      pen.fillText(part ? this.format(part * scale.reach) : "0", PAD.left - 6, y);
    }
    pen.textBaseline = "alphabetic";
    const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    pen.textAlign = "left";
    pen.fillText(clock(scale.start), PAD.left, height - 6);
    pen.textAlign = "right";
    pen.fillText(clock(scale.end), width - PAD.right, height - 6);
    pen.globalAlpha = 1;
  }

  drawBand(pen, scale) {
    const trace = (key, otherwise) => this.points.forEach((point, place) => pen[place ? "lineTo" : "moveTo"](scale.x(point.at), scale.y(point[key] ?? otherwise)));
    pen.fillStyle = pen.strokeStyle = getComputedStyle(this.swatches.band).color;
    pen.globalAlpha = 0.22;
    pen.beginPath();
    trace("low", -scale.reach);
    for (const point of [...this.points].reverse()) pen.lineTo(scale.x(point.at), scale.y(point.high ?? scale.reach));
    pen.closePath();
    pen.fill();
    pen.globalAlpha = 1;
    pen.lineWidth = 1.75;
    pen.beginPath(); trace("difference", 0); pen.stroke();
    pen.strokeStyle = getComputedStyle(this.swatches.margin).color;
    pen.setLineDash([5, 4]);
    pen.beginPath(); trace("margin", 0); pen.stroke();
    pen.setLineDash([]);
    pen.lineWidth = 1;
  }

  say(pen, scale, height) {
    let shown = this.points.at(-1);
    if (this.hover !== null) {
      shown = this.points.reduce((best, point) => (Math.abs(scale.x(point.at) - this.hover) < Math.abs(scale.x(best.at) - this.hover) ? point : best));
      const x = Math.round(scale.x(shown.at)) + 0.5;
      pen.strokeStyle = this.ink;
      pen.beginPath(); pen.moveTo(x, PAD.top); pen.lineTo(x, height - PAD.bottom); pen.stroke();
    }
    this.said.textContent = `${this.format(shown.difference)}, between ${this.format(shown.low)} and ${this.format(shown.high)}`;
  }

  fillTable() {
    if (!this.details.open) return;
    const cell = (text) => el("td", { class: "num" }, text);
    this.body.replaceChildren(...this.points.slice(-60).reverse().map((point) => el("tr", {},
      el("td", { class: "nowrap" }, new Date(point.at * 1000).toLocaleTimeString()), cell(this.format(point.low)), cell(this.format(point.difference)), cell(this.format(point.high)), el("td", {}, point.verdict))));
  }
}
