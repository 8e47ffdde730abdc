// Numbers as people read them. Units are in the names.

export function count(value, digits = 1) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Math.abs(value) >= 1_000_000) return `${(value / 1_000_000).toFixed(1)}M`;
  if (Math.abs(value) >= 10_000) return `${(value / 1000).toFixed(1)}k`;
  return Number.isInteger(value) ? String(value) : value.toFixed(value < 10 ? digits : 0);
}

export function ms(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0 ms";
  if (value > 0 && value < 0.1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} µs`;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

export function bytes(value) {
  if (!value) return "0 B";
  const step = Math.min(4, Math.floor(Math.log(value) / Math.log(1024)));
  return `${(value / 1024 ** step).toFixed(step && value / 1024 ** step < 100 ? 1 : 0)} ${["B", "KB", "MB", "GB", "TB"][step]}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.ceil(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

export function percent(share, digits = 1) {
  return share === null || share === undefined ? "–" : `${(share * 100).toFixed(digits)} %`;
}

export const formats = { count, ms, bytes, percent, duration: (value) => duration(value ?? NaN), text: (value) => (value === null || value === undefined ? "–" : String(value)) };

export function ago(date, now = new Date()) {
  const seconds = Math.round((now - date) / 1000);
  const steps = [[60, 1, "second"], [3600, 60, "minute"], [86_400, 3600, "hour"], [2_592_000, 86_400, "day"], [31_536_000, 2_592_000, "month"], [Infinity, 31_536_000, "year"]];
  const [, unit, name] = steps.find(([limit]) => Math.abs(seconds) < limit);
  return new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" }).format(-Math.trunc(seconds / unit), name);
}
