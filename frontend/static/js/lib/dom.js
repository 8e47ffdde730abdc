// Making elements without ever parsing text as HTML.

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${document.body.dataset.icons}#${name}`);
  svg.append(use);
  return svg;
}

export function dataOf(island) {
  const script = island.querySelector('script[type="application/json"]');
  return script ? JSON.parse(script.textContent) : {};
}

export function csrf() {
  return document.querySelector('meta[name="csrf-token"]')?.content ?? "";
}

export function toast(message, level = "info") {
  const region = document.querySelector("[data-toasts]");
  if (!region) return;
  region.append(el("div", { class: `toast ${level}` }, icon(level === "error" ? "warn" : level === "success" ? "check" : "info"), el("div", {}, message), el("button", { type: "button", "aria-label": "Dismiss", "data-dismiss": true }, "✕")));
  if (level !== "error") { const node = region.lastElementChild; setTimeout(() => node.remove(), 7000); }
}

// A question whose answer is a promise: true when the person agrees.
export function ask({ title, message, agree = "Continue", danger = false }) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": "ask-title" });
    const done = (answer) => { resolve(answer); dialog.close(); dialog.remove(); };
    dialog.append(
      el("div", { class: "body" }, el("h2", { id: "ask-title" }, title), ...[message].flat().map((line) => el("p", {}, line))),
      el("div", { class: "does" },
        el("button", { type: "button", class: "button", onclick: () => done(false) }, "Cancel"),
        el("button", { type: "button", class: danger ? "button danger" : "button primary", onclick: () => done(true), autofocus: true }, agree)),
    );
    dialog.addEventListener("cancel", () => done(false));
    document.body.append(dialog);
    dialog.showModal();
  });
}
