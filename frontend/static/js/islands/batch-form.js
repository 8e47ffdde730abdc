// Starts a batch: the file goes up by the Files API with a progress bar, then one call makes the batch of it.
import { csrf, dataOf } from "../lib/dom.js";
import { bytes } from "../lib/format.js";

function send(url, body, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.setRequestHeader("X-CSRFToken", csrf());
    if (typeof body === "string") request.setRequestHeader("Content-Type", "application/json");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => onProgress?.(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status < 300 && request.response) resolve(request.response);
      else reject(new Error(request.response?.error?.message ?? `The server answered ${request.status}.`));
    });
    request.addEventListener("error", () => reject(new Error("The connection to the console was lost: start it again.")));
    request.send(body);
  });
}

export function mount(island) {
  const config = dataOf(island);
  const form = island.querySelector("form");
  const button = form.querySelector("[type=submit]");
  const bar = form.querySelector("[data-progress]");
  const note = form.querySelector("[data-note]");
  const say = (message) => { note.hidden = !message; note.querySelector("[data-message]").textContent = message; };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    const { file, url, window: within, team } = form.elements;
    if (file.files[0].size > config.max_bytes) { say(`The file has ${bytes(file.files[0].size)}: split it into several.`); return; }
    say("");
    button.disabled = true;
    bar.hidden = false;
    try {
      const body = new FormData();
      body.append("purpose", "batch");
      if (team) body.append("team", team.value);
      body.append("file", file.files[0]);
      const held = await send(config.files_url, body, (share) => { bar.value = share; });
      const made = await send(config.batches_url, JSON.stringify({ input_file_id: held.id, endpoint: url.value, completion_window: within.value }));
      location.assign(`/jobs/${made.id}/`);
    } catch (error) {
      say(error.message);
      button.disabled = false;
      bar.hidden = true;
    }
  });
}
