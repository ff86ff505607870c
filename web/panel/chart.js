/** One curve of a run: axis numbers, a name, and the value under the pointer or the arrow keys. */

import { draw, make, mark, write } from "./dom.js";
import { t } from "./language.js";
import { number, whole } from "./words.js";

const HEIGHT = 120;
const EDGE = { left: 46, right: 10, top: 8, bottom: 20 };
/** Series that span more than this factor get a logarithmic axis. */
const LOGARITHMIC_SPAN = 30;
/** An axis spans at least this share of its values, so that tiny changes look tiny. */
const LEAST_SPAN = 0.05;

export class Chart {
  constructor() {
    this.name = make("h4", { class: "dpdmd-chart-name" });
    this.value = make("span", { class: "dpdmd-chart-value" });
    this.grid = draw("g", { class: "dpdmd-grid" });
    this.line = draw("path", { class: "dpdmd-line" });
    this.end = draw("circle", { class: "dpdmd-end", r: 3 });
    this.cursor = draw("line", { class: "dpdmd-cursor" });
    this.dot = draw("circle", { class: "dpdmd-dot", r: 3.5 });
    this.svg = draw("svg", { class: "dpdmd-svg", role: "img", tabindex: 0, height: HEIGHT });
    this.svg.append(this.grid, this.line, this.end, this.cursor, this.dot);
    const head = make("div", { class: "dpdmd-chart-head" }, this.name, this.value);
    this.element = make("figure", { class: "dpdmd-chart" }, head, this.svg);
    this.points = [];
    this.chosen = null;
    this.width = 0;
    this.listen();
  }

  listen() {
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.sizes = new ResizeObserver(() => {
      const width = Math.round(this.svg.clientWidth);
      if (width && width !== this.width) this.plot(width);
    });
    this.sizes.observe(this.svg);
  }

  /** @param {{label: string, points: [number, number][]}} series */
  update(series) {
    const points = series.points.filter((pair) => pair.every(Number.isFinite));
    write(this.name, t(series.label));
    const last = points.at(-1) ?? [];
    const same = points.length === this.points.length && String(last) === String(this.points.at(-1));
    this.points = points;
    if (!same && this.width) this.plot(this.width);
    this.read();
  }

  plot(width) {
    this.width = width;
    if (!this.points.length) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const steps = this.points.map((pair) => pair[0]);
    const values = this.points.map((pair) => pair[1]);
    this.across = new Axis(steps, EDGE.left, width - EDGE.right, false);
    this.up = new Axis(values, HEIGHT - EDGE.bottom, EDGE.top, true);
    const corners = this.points.map(([x, y]) => `${this.across.at(x)} ${this.up.at(y)}`);
    this.line.setAttribute("d", `M${corners.join("L")}`);
    const [x, y] = this.points.at(-1);
    mark(this.end, "cx", this.across.at(x));
    mark(this.end, "cy", this.up.at(y));
    this.ticks(width);
    this.choose(this.chosen);
  }

  ticks(width) {
    const parts = [];
    for (const tick of this.up.ticks(3)) {
      const y = this.up.at(tick);
      parts.push(draw("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }));
      const beside = { x: EDGE.left - 6, y: Number(y) + 4, "text-anchor": "end" };
      parts.push(draw("text", beside, this.up.words(tick)));
    }
    for (const tick of this.across.ticks(width > 420 ? 6 : 4).filter(Number.isInteger)) {
      const attributes = { x: this.across.at(tick), y: HEIGHT - 5, "text-anchor": "middle" };
      parts.push(draw("text", attributes, whole(tick)));
    }
    this.grid.replaceChildren(...parts);
  }

  point(event) {
    if (!this.across || !this.points.length) return;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const distances = this.points.map(([step]) => Math.abs(this.across.at(step) - x));
    this.choose(distances.indexOf(Math.min(...distances)));
  }

  key(event) {
    const last = this.points.length - 1;
    const from = this.chosen ?? last;
    const moves = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last };
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    event.stopPropagation();
    this.choose(Math.min(last, Math.max(0, moves[event.key])));
  }

  choose(index) {
    this.chosen = index !== null && index < this.points.length ? index : null;
    const point = this.chosen === null ? null : this.points[this.chosen];
    for (const part of [this.cursor, this.dot]) part.style.display = point ? "" : "none";
    if (point) {
      const [x, y] = [this.across.at(point[0]), this.up.at(point[1])];
      const line = { x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom };
      for (const [name, value] of Object.entries(line)) this.cursor.setAttribute(name, value);
      this.dot.setAttribute("cx", x);
      this.dot.setAttribute("cy", y);
    }
    this.read();
  }

  /** The value in words: of the chosen point, or of the last one. */
  read() {
    const last = this.points.at(-1);
    const point = this.chosen === null ? last : this.points[this.chosen];
    const at = this.chosen === null || !point ? "" : t("update {step}: ", { step: whole(point[0]) });
    write(this.value, point ? `${at}${number(point[1])}` : "");
    const ends = last ? { first: number(this.points[0][1]), last: number(last[1]) } : null;
    const words = ends ? t("{first} at first, {last} now", ends) : t("no values");
    mark(this.svg, "aria-label", `${this.name.textContent}: ${at ? at + number(point[1]) : words}`);
  }

  destroy() {
    this.sizes.disconnect();
  }
}

/** From values to places, with round numbers to write beside it. */
class Axis {
  constructor(values, from, to, mayBeLogarithmic) {
    let low = Math.min(...values);
    let high = Math.max(...values);
    this.logarithmic = mayBeLogarithmic && low > 0 && high / low > LOGARITHMIC_SPAN;
    const least = mayBeLogarithmic ? LEAST_SPAN * Math.max(Math.abs(low), Math.abs(high)) : 0;
    const room = Math.max(0, least - (high - low)) / 2 || (low === high ? 1 : 0);
    [low, high] = [low - room, high + room];
    Object.assign(this, { low, high, from, to });
  }

  at(value) {
    const scale = this.logarithmic ? Math.log : Number;
    const part = (scale(value) - scale(this.low)) / (scale(this.high) - scale(this.low));
    return (this.from + part * (this.to - this.from)).toFixed(1);
  }

  /** A tick with the digits that tell it from its neighbours. */
  words(tick) {
    const size = Math.max(Math.abs(this.low), Math.abs(this.high));
    if (this.logarithmic || size >= 1e5 || size < 1e-3) return number(tick);
    return tick.toFixed(Math.max(0, -Math.floor(Math.log10(this.step) + 1e-9)));
  }

  ticks(most) {
    if (this.logarithmic) return powers(this.low, this.high, most);
    const rough = (this.high - this.low) / most;
    const ten = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * ten).find((size) => size >= rough);
    this.step = step;
    const found = [];
    for (let tick = Math.ceil(this.low / step - 1e-9); tick * step <= this.high + step * 1e-6; tick++) {
      found.push(Number((tick * step).toPrecision(12)));
    }
    return found;
  }
}

function powers(low, high, most) {
  const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first + 1) / most));
  const found = [];
  for (let power = first; power <= last; power += every) found.push(Number(`1e${power}`));
  return found.length > 1 ? found : [low, high];
}
