/** One run: how far it is, what to know of it, curves, previews, what it made, settings, log. */

import { Actions } from "./actions.js";
import { Chart } from "./chart.js";
import { CheckTable } from "./check_table.js";
import { arrange, button, icon, make, mark, setIcon, show, write } from "./dom.js";
import { Images } from "./images.js";
import { later, t } from "./language.js";
import { Outcome } from "./outcome.js";
import { fileName, howFar, isLive, kindOf, share, stateOf } from "./words.js";

const FINDING_ICONS = { problem: "failed", warning: "warning", info: "info" };
const FINDING_TONES = { problem: "bad", warning: "warn", info: "soft" };
/** Curves that are shown at once; the others are folded away. */
const FIRST_CURVES = 2;
/** What is said of a job that was stopped, by its kind. */
const KEPT = {
  distill: later("What there was is kept. Resume goes on exactly where it stopped."),
  check: later("What is finished is kept. Resume goes on with the next part."),
};
/** Lines of the log that the progress bar says already. */
const PROGRESS_LINE = /^update \d+\/\d+,|^---/;

export class RunView {
  /**
   * @param {{back: () => void, act: (id: string, action: string, body?: object) => Promise<void>,
   *   image: (job: object, name: string) => string, use?: (path: string) => void,
   *   report: (id: string) => string, share: (id: string) => void}} does
   */
  constructor(does) {
    this.does = does;
    this.job = null;
    this.charts = new Map();
    this.back = button(t("All runs"), does.back, { class: "dpdmd-button dpdmd-back" });
    this.back.prepend(icon("back"));
    this.actions = new Actions((action, body) => does.act(this.job.id, action, body));
    this.images = new Images((name) => does.image(this.job, name));
    this.element = make("article", { class: "dpdmd-view", "aria-label": t("Run") });
    this.outcome = new Outcome(does);
    this.element.append(this.back, ...this.head(), this.outcome.element, this.actions.element, ...this.parts());
  }

  head() {
    this.title = make("h2", { tabindex: -1 });
    this.icon = icon("fresh");
    this.state = make("span", { class: "dpdmd-state" });
    this.facts = make("span", { class: "dpdmd-soft" });
    const line = make("p", { class: "dpdmd-state-line" }, this.icon, this.state, this.facts);
    this.fill = make("i");
    const bar = { class: "dpdmd-bar", role: "progressbar", "aria-label": t("Progress"), "aria-valuemin": 0 };
    this.bar = make("div", { ...bar, "aria-valuemax": 100 }, this.fill);
    this.far = make("p", { class: "dpdmd-soft dpdmd-far" });
    this.said = make("p", { class: "dpdmd-said" });
    return [this.title, line, this.bar, this.far, this.said];
  }

  parts() {
    this.findings = make("ul", { class: "dpdmd-findings", "aria-label": t("What to know") });
    this.made = make("p", { class: "dpdmd-made" });
    this.checked = new CheckTable();
    this.first = make("div", { class: "dpdmd-charts" });
    this.more = make("div", { class: "dpdmd-charts" });
    this.curves = make("section", { class: "dpdmd-section" }, make("h3", {}, t("Curves")), this.first);
    this.moreBox = folded(t("More curves"), this.more);
    this.curves.append(this.moreBox);
    this.settings = make("dl", { class: "dpdmd-settings" });
    this.settingsBox = folded(t("Settings"), this.settings);
    this.log = make("pre", { class: "dpdmd-log", tabindex: 0 });
    this.logBox = folded(t("Log"), this.log);
    this.logBox.addEventListener("toggle", () => this.follow());
    const boxes = [this.settingsBox, this.logBox];
    return [this.made, this.findings, this.checked.element, this.images.element, this.curves, ...boxes];
  }

  /** What the list knows of the run already. */
  update(job, last) {
    const other = this.job?.id !== job.id;
    this.job = job;
    if (other) this.empty();
    const state = stateOf(job.state);
    write(this.title, job.title);
    setIcon(this.icon, state.icon);
    mark(this.icon, "data-tone", state.tone);
    write(this.state, state.label);
    mark(this.state, "data-tone", state.tone);
    write(this.facts, `${kindOf(job.kind)} · ${job.id}`);
    this.progress(job);
    this.say(job);
    this.actions.update(job, last);
    this.outcome.update(job);
    const lora = job.result?.lora;
    show(this.made, typeof lora === "string");
    if (typeof lora === "string") write(this.made, t("LoRA: {name}", { name: fileName(lora) }));
    mark(this.made, "title", lora);
    this.checked.update(job.kind === "check" ? job.result : null);
  }

  progress(job) {
    const done = share(job);
    const busy = isLive(job) && job.state !== "queued";
    show(this.bar, busy || (done !== null && done < 1));
    mark(this.bar, "data-unknown", busy && done === null ? "" : null);
    mark(this.bar, "aria-valuenow", done === null ? null : Math.round(done * 100));
    mark(this.bar, "aria-valuetext", howFar(job) || null);
    this.fill.style.width = `${(done ?? 0) * 100}%`;
    const place = typeof job.place === "number" ? t("Place {place} in the queue", { place: job.place + 1 }) : "";
    write(this.far, place || howFar(job));
  }

  say(job) {
    const bad = job.state === "failed" || job.state === "interrupted";
    const kept = job.state === "stopped" ? t(KEPT[job.kind] ?? "") : "";
    const words = kept || (bad || isLive(job) ? job.message : "");
    write(this.said, words);
    mark(this.said, "data-tone", job.state === "failed" ? "bad" : bad ? "warn" : null);
    show(this.said, Boolean(words) && !PROGRESS_LINE.test(words));
  }

  /** What only the run's own page has: curves, previews, findings, settings, log. */
  detail(run) {
    const said = this.job?.message; // it stands above already
    this.find((run.findings ?? []).filter((finding) => finding.text !== said));
    this.plot([...(run.diversity ?? []), ...(run.loss ?? [])]);
    this.outcome.detail(run);
    this.images.update(run.previews ?? []);
    this.set(run.settings ?? {});
    this.tell(run.log ?? "");
  }

  empty() {
    this.detail({});
    for (const box of [this.moreBox, this.settingsBox, this.logBox]) box.open = false;
  }

  find(findings) {
    const key = JSON.stringify(findings);
    if (this.found === key) return;
    this.found = key;
    this.findings.replaceChildren(...findings.map(findingOf));
    show(this.findings, findings.length > 0);
  }

  plot(series) {
    const drawable = series.filter((one) => one.points.length > 1);
    for (const [name, chart] of this.charts) {
      if (drawable.some((one) => one.name === name)) continue;
      chart.destroy();
      this.charts.delete(name);
    }
    const figures = drawable.map((one) => {
      if (!this.charts.has(one.name)) this.charts.set(one.name, new Chart());
      this.charts.get(one.name).update(one);
      return this.charts.get(one.name).element;
    });
    arrange(this.first, figures.slice(0, FIRST_CURVES));
    arrange(this.more, figures.slice(FIRST_CURVES));
    show(this.curves, figures.length > 0);
    show(this.moreBox, figures.length > FIRST_CURVES);
  }

  set(settings) {
    const key = JSON.stringify(settings);
    if (this.seenSettings === key) return;
    this.seenSettings = key;
    const entries = Object.entries(settings);
    const rows = entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, plain(value))]);
    this.settings.replaceChildren(...rows);
    show(this.settingsBox, entries.length > 0);
  }

  tell(log) {
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 24;
    write(this.log, log);
    show(this.logBox, Boolean(log));
    if (atEnd) this.follow();
  }

  follow() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}

function folded(words, content) {
  return make("details", { class: "dpdmd-folded" }, make("summary", {}, words), content);
}

function findingOf(finding) {
  const tone = FINDING_TONES[finding.level] ?? "soft";
  const sign = icon(FINDING_ICONS[finding.level] ?? "info");
  sign.setAttribute("data-tone", tone);
  const texts = make("div", {}, make("strong", {}, finding.title), make("p", {}, finding.text));
  return make("li", { "data-tone": tone }, sign, texts);
}

function plain(value) {
  if (value === "" || value === null) return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
