// A small bar chart on a canvas: labels below, values above, dark mode, HiDPI. The figures stand in a table beside it too,
// for those who cannot see it. Colours come from the swatch and the note, which take them from the tokens.
import { el } from "./dom.js";

const PAD = { left: 8, right: 8, top: 20, bottom: 22 };
const WIDEST_PX = 72;

export class BarChart {
  // format: number -> text, head and value: the table's column heads
  constructor(host, { format, label, head, value }) {
    Object.assign(this, { host, format, bars: [] });
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.swatch = el("i", { class: "swatch s1" });
    this.note = el("div", { class: "legend", "aria-hidden": "true" }, el("span", {}, this.swatch, value));
    this.body = el("tbody", {});
    const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, head), el("th", { scope: "col", class: "num" }, value))), this.body);
    this.details = el("details", {}, el("summary", {}, "Figures as a table"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, figures` }, table));
    this.details.addEventListener("toggle", () => this.fillTable());
    host.classList.add("chart");
    host.append(this.note, this.canvas, this.details);
    new ResizeObserver(() => this.later()).observe(this.canvas);
    new MutationObserver(() => this.later()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
  }

  // bars: [{ label, value }]
  update(bars) {
    this.bars = bars;
    this.later();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const ink = getComputedStyle(this.note).color;
    pen.font = `11px ${getComputedStyle(this.note).fontFamily}`;
    pen.textAlign = "center";
    pen.strokeStyle = pen.fillStyle = ink;
    if (this.bars.length) this.drawBars(pen, width, height, ink);
    else pen.fillText("No requests in this time", width / 2, height / 2 - 4);
    pen.globalAlpha = 0.35;
    pen.beginPath(); pen.moveTo(PAD.left, height - PAD.bottom + 0.5); pen.lineTo(width - PAD.right, height - PAD.bottom + 0.5); pen.stroke();
    pen.globalAlpha = 1;
    this.fillTable();
  }

  drawBars(pen, width, height, ink) {
    const step = Math.min((width - PAD.left - PAD.right) / this.bars.length, WIDEST_PX);
    const top = Math.max(...this.bars.map((bar) => bar.value), 1e-9);
    const color = getComputedStyle(this.swatch).color;
    const widest = Math.max(...this.bars.map((bar) => pen.measureText(bar.label).width)) + 4;
    const each = Math.ceil(widest / step);
    this.bars.forEach((bar, place) => {
      const tall = Math.max(1.5, (bar.value / top) * (height - PAD.top - PAD.bottom));
      const x = PAD.left + place * step;
      pen.fillStyle = color;
      pen.fillRect(x + step * 0.12, height - PAD.bottom - tall, step * 0.76, tall);
      pen.fillStyle = ink;
      pen.globalAlpha = 0.85;
      if (place % each === 0) pen.fillText(bar.label, x + step / 2, height - 6);
      if (step > 26) pen.fillText(this.format(bar.value), x + step / 2, height - PAD.bottom - tall - 5);
      pen.globalAlpha = 1;
    });
  }

  fillTable() {
    if (!this.details.open) return;
    this.body.replaceChildren(...this.bars.map((bar) => el("tr", {}, el("td", {}, bar.label), el("td", { class: "num" }, this.format(bar.value)))));
  }
}
