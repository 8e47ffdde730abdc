// A client of tus 1.0 (core, creation, termination) over fetch. One Upload sends one file in chunks; it can be paused,
// goes on after a lost connection by asking the server for the offset, and after a reload by the file's fingerprint.
import { csrf } from "./dom.js";

export const CHUNK_BYTES = 8 << 20;
const VERSION = { "Tus-Resumable": "1.0.0" };
const STORE = "serinus.tus.";
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 8000];

const sleep = (time) => new Promise((resolve) => { setTimeout(resolve, time); });

export class UploadFailed extends Error {}

function encode(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

async function explain(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return [error.message, error.remedy].filter(Boolean).join(" ");
  } catch {
    return `The server answered ${response.status}.`;
  }
}

export class Upload {
  // onProgress(sent bytes); metadata: { filename, team, ... }
  constructor(file, { url, path, metadata, onProgress }) {
    Object.assign(this, { file, base: url, path, metadata, onProgress, sent: 0, location: null, paused: false });
    this.fingerprint = `${STORE}${[path, file.size, file.lastModified, metadata.team].join("|")}`;
  }

  get id() {
    return this.location?.replace(/\/+$/, "").split("/").at(-1) ?? null;
  }

  pause() {
    this.paused = true;
    this.abort?.abort();
  }

  // Sends what is missing. Resolves true when whole, false when paused; rejects with UploadFailed.
  async run() {
    this.paused = false;
    await this.look(); // a pause cut a chunk in two: the server knows where
    for (let attempt = 0; !this.paused;) {
      try {
        if (!this.location) await this.begin();
        await this.sendRest(() => { attempt = 0; });
        if (!this.paused) return true; // remembered until a version is made of it
      } catch (error) {
        if (this.paused) break;
        if (error instanceof UploadFailed || attempt >= RETRY_MS.length) throw new UploadFailed(error.message || "The connection was lost.");
        await sleep(RETRY_MS[attempt++]);
        await this.look();
      }
    }
    return false;
  }

  async begin() {
    const known = localStorage.getItem(this.fingerprint);
    if (known) {
      this.location = known;
      await this.look();
      if (this.location) return;
    }
    const pairs = Object.entries(this.metadata).map(([key, value]) => `${key} ${encode(String(value))}`);
    const response = await this.call(this.base, "POST", { "Upload-Length": String(this.file.size), "Upload-Metadata": pairs.join(",") });
    if (response.status !== 201) throw this.refusal(response, await explain(response));
    this.location = new URL(response.headers.get("Location"), new URL(this.base, location.href)).pathname;
    this.sent = 0;
    localStorage.setItem(this.fingerprint, this.location);
  }

  // Asks the server how far it is; an upload that it no longer knows is begun anew.
  async look() {
    if (!this.location) return;
    const response = await this.call(this.location, "HEAD", {}).catch(() => null);
    if (response === null) return;
    if (response.ok) {
      this.sent = Number(response.headers.get("Upload-Offset"));
      this.onProgress(this.sent);
    } else if (response.status === 404 || response.status === 410 || response.status === 403) {
      this.forget();
      this.location = null;
      this.sent = 0;
    }
  }

  async sendRest(worked) {
    while (this.sent < this.file.size && !this.paused) {
      const chunk = this.file.slice(this.sent, this.sent + CHUNK_BYTES);
      const response = await this.call(this.location, "PATCH", { "Upload-Offset": String(this.sent), "Content-Type": "application/offset+octet-stream" }, chunk);
      if (response.status === 409) { await this.look(); continue; }
      if (response.status === 404 || response.status === 410) { this.forget(); this.location = null; throw new Error("The upload has expired."); }
      if (response.status !== 204) throw this.refusal(response, await explain(response));
      this.sent = Number(response.headers.get("Upload-Offset"));
      this.onProgress(this.sent);
      worked();
    }
  }

  refusal(response, message) {
    const passing = response.status >= 500 || response.status === 423 || response.status === 429;
    return passing ? new Error(message) : new UploadFailed(message);
  }

  call(url, method, headers, body) {
    this.abort = new AbortController();
    return fetch(url, { method, body, signal: this.abort.signal, credentials: "same-origin", headers: { ...VERSION, "X-CSRFToken": csrf(), ...headers } });
  }

  forget() {
    localStorage.removeItem(this.fingerprint);
  }

  async terminate() {
    this.pause();
    if (this.location) await this.call(this.location, "DELETE", {}).catch(() => null);
    this.forget();
    this.location = null;
  }
}
