// Drag files, a folder or a zip; each goes up by tus in resumable chunks, then one call makes the version of them.
import { bytes, duration } from "../lib/format.js";
import { csrf, dataOf, el, toast } from "../lib/dom.js";
import { Upload, UploadFailed } from "../lib/tus.js";

const PARALLEL = 2;

// Every file below a dropped entry, with its path inside the folder that was dropped.
async function walk(entry, prefix = "") {
  if (entry.isFile) return [{ path: prefix + entry.name, file: await new Promise((resolve, reject) => { entry.file(resolve, reject); }) }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!some.length) return found;
    for (const child of some) found.push(...await walk(child, prefix + (child.isFile ? "" : `${child.name}/`)));
  }
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = [];
  for (const entry of entries) found.push(...await walk(entry));
  return found;
}

const picked = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath ? file.webkitRelativePath.split("/").slice(1).join("/") : file.name }));

// Speed over the last few seconds, so that a pause or a slow minute does not spoil the estimate.
class Speed {
  constructor() { this.marks = []; }

  add(total) {
    const now = performance.now();
    this.marks.push([now, total]);
    while (this.marks.length > 2 && now - this.marks[0][0] > 6000) this.marks.shift();
  }

  get bytesPerSecond() {
    if (this.marks.length < 2) return 0;
    const [[from, before], [to, after]] = [this.marks[0], this.marks.at(-1)];
    return to > from ? ((after - before) / (to - from)) * 1000 : 0;
  }
}

class Uploader {
  constructor(island) {
    Object.assign(this, { island, config: dataOf(island), rows: [], state: "idle", speed: new Speed() });
    this.form = island.querySelector("form");
    this.drop = island.querySelector("[data-drop]");
    this.list = island.querySelector("[data-files]");
    this.total = island.querySelector("[data-total]");
    this.note = island.querySelector("[data-note]");
    this.listen();
    this.show();
  }

  at(name) { return this.island.querySelector(`[data-${name}]`); }

  value(name) { return this.form.elements[name]?.value?.trim() ?? ""; }

  listen() {
    for (const kind of ["dragenter", "dragover"]) this.drop.addEventListener(kind, (event) => { event.preventDefault(); this.drop.classList.add("over"); });
    for (const kind of ["dragleave", "drop"]) this.drop.addEventListener(kind, () => this.drop.classList.remove("over"));
    this.drop.addEventListener("drop", async (event) => { event.preventDefault(); this.add(await dropped(event.dataTransfer)); });
    for (const [button, input] of [["choose-files", "input-files"], ["choose-folder", "input-folder"]]) {
      this.at(button).addEventListener("click", () => this.at(input).click());
      this.at(input).addEventListener("change", () => { this.add(picked(this.at(input))); this.at(input).value = ""; });
    }
    this.form.addEventListener("submit", (event) => { event.preventDefault(); event.stopPropagation(); if (this.state === "sending") this.pause(); else this.start(); });
    this.at("clear").addEventListener("click", () => this.clear());
    addEventListener("beforeunload", (event) => { if (this.state === "sending") event.preventDefault(); });
    this.form.elements.model.addEventListener("input", () => this.matchTeam());
    this.matchTeam();
  }

  // A model that exists belongs to a team already: the choice is made for the person.
  matchTeam() {
    const known = this.config.models[this.value("model")];
    if (known) this.form.elements.team.value = known;
    this.form.elements.team.disabled = Boolean(known);
  }

  add(found) {
    const held = new Set(this.rows.map((row) => row.path));
    for (const { path, file } of found) if (!held.has(path) && !path.split("/").some((part) => part.startsWith("."))) this.rows.push(this.row(path, file));
    this.list.replaceChildren(...this.rows.map((row) => row.node));
    this.say(null);
    this.show();
  }

  row(path, file) {
    const bar = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${path}` });
    const label = el("span", { class: "sub" }, bytes(file.size));
    return { path, file, bar, label, sent: 0, upload: null, node: el("li", {}, el("span", { class: "name", title: path }, path), label, bar) };
  }

  async clear() {
    const rows = this.rows;
    this.rows = [];
    this.state = "idle";
    this.list.replaceChildren();
    this.say(null);
    this.show();
    await Promise.all(rows.map((row) => row.upload?.terminate()));
  }

  pause() {
    this.state = "paused";
    for (const row of this.rows) row.upload?.pause();
    this.show();
  }

  async start() {
    if (!this.rows.length) { this.say("Choose a file, a folder or a zip first."); return; }
    this.state = "sending";
    this.speed = new Speed();
    this.say(null);
    this.show();
    try {
      const waiting = this.rows.filter((row) => !row.whole);
      await Promise.all(Array.from({ length: PARALLEL }, () => this.sendSome(waiting)));
      if (this.state !== "sending") return;
      this.state = "making";
      this.show();
      await this.make();
    } catch (error) {
      this.pause();
      this.say(error instanceof UploadFailed ? error.message : "The connection to the console was lost. What was sent is kept: press Resume.");
    }
  }

  async sendSome(waiting) {
    while (this.state === "sending" && waiting.length) {
      const row = waiting.shift();
      row.upload ??= new Upload(row.file, { url: this.config.uploads_url, path: row.path, metadata: { filename: row.path, team: this.form.elements.team.value }, onProgress: (sent) => { row.sent = sent; this.show(); } });
      row.whole = await row.upload.run();
      if (row.whole) { row.sent = row.file.size; row.bar.classList.add("done"); }
      this.show();
    }
  }

  async post(url, body) {
    const response = await fetch(url, { method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json", "X-CSRFToken": csrf() }, body: JSON.stringify(body) });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    const { message = `The server answered ${response.status}.`, remedy = "", fields = null } = answer.error ?? {};
    const detail = fields ? Object.entries(fields).map(([name, said]) => `${name}: ${[said].flat().join(" ")}`).join("; ") : "";
    throw new UploadFailed([message, detail, remedy].filter(Boolean).join(" "));
  }

  async make() {
    const model = this.value("model");
    if (!this.config.models[model]) await this.post(this.config.models_url, { name: model, team: this.form.elements.team.value, task: this.value("task"), description: this.value("description") });
    this.config.models[model] = this.form.elements.team.value;
    const runtime = {};
    if (this.value("max_batch_size")) runtime.max_batch_size = Number(this.value("max_batch_size"));
    if (this.value("window_ms")) runtime.window_ms = Number(this.value("window_ms"));
    if (this.value("task")) runtime.task = this.value("task");
    const body = { files: this.rows.map((row) => ({ path: row.path, upload: row.upload.id })), runtime };
    if (this.value("alias")) body.alias = this.value("alias");
    const version = await this.post(`${this.config.models_url}${encodeURIComponent(model)}/versions/`, body);
    this.state = "done";
    for (const row of this.rows) row.upload.forget();
    toast(`Version ${version.number} was made. It is being checked now.`, "success");
    location.assign(`/models/${encodeURIComponent(model)}/versions/${version.number}/`);
  }

  say(message) {
    this.note.hidden = !message;
    this.note.querySelector("[data-message]").textContent = message ?? "";
  }

  show() {
    const size = this.rows.reduce((sum, row) => sum + row.file.size, 0);
    const sent = this.rows.reduce((sum, row) => sum + row.sent, 0);
    for (const row of this.rows) {
      row.bar.value = row.file.size ? row.sent / row.file.size : Number(Boolean(row.whole));
      row.label.textContent = row.sent && !row.whole ? `${bytes(row.sent)} of ${bytes(row.file.size)}` : `${bytes(row.file.size)}${row.whole ? " ✓" : ""}`;
    }
    this.speed.add(sent);
    const speed = this.speed.bytesPerSecond;
    const left = this.state === "sending" && speed > 0 ? ` · ${bytes(speed)}/s · ${duration((size - sent) / speed)} left` : "";
    const words = { idle: "", sending: left, paused: " · paused", making: " · making the version", done: " · done" }[this.state];
    this.total.hidden = !this.rows.length;
    this.total.querySelector("[data-words]").textContent = `${this.rows.length} ${this.rows.length === 1 ? "file" : "files"}, ${bytes(sent)} of ${bytes(size)}${words}`;
    this.total.querySelector("progress").value = size ? sent / size : 0;
    const send = this.at("send");
    send.textContent = { idle: "Upload", sending: "Pause", paused: "Resume", making: "Making the version…", done: "Done" }[this.state];
    send.disabled = this.state === "making" || this.state === "done";
    this.at("clear").hidden = !this.rows.length || this.state === "sending" || this.state === "making";
  }
}

export const mount = (island) => new Uploader(island);
