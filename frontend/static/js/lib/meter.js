// A bar of a share from 0 to 1; the number stands beside it, so it is hidden from those who listen.
export function meter(share) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("aria-hidden", "true");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  rect.setAttribute("width", `${(share * 100).toFixed(1)}%`);
  rect.setAttribute("height", "100%");
  svg.append(rect);
  return svg;
}
