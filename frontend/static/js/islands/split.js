// The split between versions, in hundredths of a percent (basis points). Moving one slider takes from and gives to the
// others in proportion, so the sum is always all of the traffic. The question before saving says the effect in numbers.
import { ask, dataOf } from "../lib/dom.js";
import { subscribe } from "../lib/socket.js";

const ALL = 10_000;

export function rebalance(weights, moved, value) {
  const others = weights.map((_, index) => index).filter((index) => index !== moved);
  const rest = ALL - value;
  const held = others.reduce((sum, index) => sum + weights[index], 0);
  const next = [...weights];
  next[moved] = value;
  let given = 0;
  others.forEach((index, place) => {
    const last = place === others.length - 1;
    next[index] = last ? rest - given : Math.floor(held ? (weights[index] / held) * rest : rest / others.length);
    given += next[index];
  });
  return next;
}

export function effect(versions, before, after, rate) {
  return versions.map((version, index) => {
    const moved = after[index] - before[index];
    if (!moved) return null;
    const share = `version ${version}: ${before[index] / 100} % → ${after[index] / 100} %`;
    return rate ? `${share} (${moved > 0 ? "+" : "−"}${Math.abs((moved / ALL) * rate).toFixed(1)} requests/s)` : share;
  }).filter(Boolean);
}

export function mount(form) {
  const { topic, versions, weights: stored } = dataOf(form);
  let weights = [...stored];
  let rate = 0;
  if (topic) subscribe(topic, (data) => { rate = data?.rps ?? rate; });
  const sliders = [...form.querySelectorAll("input[type=range]")];
  const numbers = [...form.querySelectorAll("input[type=number]")];
  const rects = [...document.querySelectorAll("[data-split-bar] rect")];
  const save = form.querySelector("button[type=submit]");
  const reset = form.querySelector("button[type=reset]");
  const show = () => {
    let left = 0;
    weights.forEach((weight, index) => {
      sliders[index].value = weight;
      sliders[index].setAttribute("aria-valuetext", `${weight / 100} percent`);
      if (document.activeElement !== numbers[index]) numbers[index].value = weight / 100;
      rects[index]?.setAttribute("x", `${left / 100}%`);
      rects[index]?.setAttribute("width", `${weight / 100}%`);
      left += weight;
    });
    const same = weights.every((weight, index) => weight === stored[index]);
    save.disabled = same;
    reset.hidden = same;
  };
  const move = (index, value) => {
    if (versions.length < 2 || !Number.isFinite(value)) return;
    weights = rebalance(weights, index, Math.max(0, Math.min(ALL, Math.round(value))));
    show();
  };
  sliders.forEach((slider, index) => { slider.disabled = versions.length < 2; slider.addEventListener("input", () => move(index, Number(slider.value))); });
  numbers.forEach((number, index) => {
    number.readOnly = versions.length < 2;
    number.addEventListener("input", () => move(index, number.valueAsNumber * 100));
    number.addEventListener("blur", show);
  });
  form.addEventListener("reset", (event) => { event.preventDefault(); weights = [...stored]; show(); });
  form.addEventListener("submit", async (event) => {
    if (form.dataset.agreed) return;
    event.preventDefault();
    event.stopPropagation();
    const lines = effect(versions, stored, weights, rate);
    const fewer = ["Callers keep their version as far as the shares allow: the assignment is a stable hash."];
    if (await ask({ title: "Move this traffic?", message: [...lines, ...fewer], agree: "Move traffic" })) {
      form.dataset.agreed = "1";
      form.requestSubmit(save);
    }
  });
  show();
}
