// A line over time in an SVG element. Knows numbers and seconds, not what they mean.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** The smallest of 1, 2, 5, 10, 20, ... that is at least `value`. */
export function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((bound) => bound >= value);
}

export class Chart {
  /** `span` seconds are shown; older points are forgotten. */
  constructor(svg, span) {
    this.svg = svg;
    this.span = span;
    this.points = [];
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  add(time, value) {
    this.points.push([time, value]);
    while (this.points.length > 2 && this.points[1][0] < time - this.span) this.points.shift();
    this.draw();
  }

  draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width || !this.points.length) return;
    const left = 40, bottom = 16, top = 6;
    const bound = ceiling(Math.max(...this.points.map(([, value]) => value)));
    const end = this.points.at(-1)[0];
    const x = (time) => left + (width - left) * (1 - (end - time) / this.span);
    const y = (value) => height - bottom - (height - bottom - top) * (value / bound);
    const nodes = [];
    for (const value of [0, bound / 2, bound]) {
      nodes.push(make("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
      nodes.push(make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toLocaleString("en")));
    }
    nodes.push(make("text", { x: left, y: height - 2 }, `${Math.round(this.span / 60)} min ago`));
    nodes.push(make("text", { x: width, y: height - 2, "text-anchor": "end" }, "now"));
    const line = this.points.map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const first = Math.max(x(this.points[0][0]), left).toFixed(1);
    nodes.push(make("polygon", { class: "area", points: `${first},${y(0)} ${line} ${x(end)},${y(0)}` }));
    nodes.push(make("polyline", { class: "line", points: line }));
    this.svg.replaceChildren(...nodes);
  }
}
