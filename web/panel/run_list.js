/** All runs: what works or waits first, then the newest. Rows are kept and changed in place. */

import { arrange, icon, make, mark, setIcon, show, write } from "./dom.js";
import { t } from "./language.js";
import { inShort, isLive, kindOf, share, stateOf } from "./words.js";

const RANK = { running: 0, stopping: 0, starting: 0, queued: 1 };

export class RunList {
  /** @param {(id: string) => void} open called with the id of the chosen run */
  constructor(open) {
    this.open = open;
    this.rows = new Map();
    this.element = make("ul", { class: "dpdmd-list", "aria-label": t("Runs") });
  }

  /** @param {object[]} jobs newest first; `selected` is an id or null. */
  update(jobs, selected) {
    const order = jobs
      .map((job, index) => [RANK[job.state] ?? 2, job.place ?? 0, index, job])
      .sort((one, other) => one[0] - other[0] || one[1] - other[1] || one[2] - other[2])
      .map((entry) => entry[3]);
    for (const id of [...this.rows.keys()]) {
      if (!order.some((job) => job.id === id)) this.rows.delete(id);
    }
    for (const job of order) {
      if (!this.rows.has(job.id)) this.rows.set(job.id, new Row(() => this.open(job.id)));
      this.rows.get(job.id).update(job, job.id === selected);
    }
    arrange(this.element, order.map((job) => this.rows.get(job.id).element));
  }

  /** Puts the keyboard where this run is in the list. */
  focus(id) {
    this.rows.get(id)?.element.firstElementChild.focus();
  }
}

class Row {
  constructor(open) {
    this.icon = icon("fresh");
    this.title = make("span", { class: "dpdmd-row-title" });
    this.words = make("span", { class: "dpdmd-row-words" });
    this.fill = make("i");
    this.bar = make("span", { class: "dpdmd-bar", "aria-hidden": "true" }, this.fill);
    const texts = make("span", { class: "dpdmd-row-texts" }, this.title, this.words, this.bar);
    this.button = make("button", { type: "button", class: "dpdmd-row", onclick: open }, this.icon, texts);
    this.element = make("li", {}, this.button);
  }

  update(job, selected) {
    const state = stateOf(job.state);
    setIcon(this.icon, state.icon);
    mark(this.icon, "data-tone", state.tone);
    write(this.title, job.title);
    mark(this.title, "title", job.title);
    write(this.words, job.kind === "distill" ? inShort(job) : `${kindOf(job.kind)} · ${inShort(job)}`);
    mark(this.button, "aria-current", selected ? "true" : null);
    const done = share(job);
    const busy = isLive(job) && job.state !== "queued";
    show(this.bar, busy);
    mark(this.bar, "data-unknown", busy && done === null ? "" : null);
    this.fill.style.width = `${(done ?? 0) * 100}%`;
  }
}
