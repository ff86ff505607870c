/** What a check found: each question with its verdict, what to do about a red one, and the table to copy. */

import { button, make, mark, show, write } from "./dom.js";
import { t } from "./language.js";

const TONES = { green: "good", red: "bad" };
const COPIED_STAYS = 1500; // milliseconds

export class CheckTable {
  constructor() {
    this.rows = make("ul", { class: "dpdmd-findings" });
    this.copy = button(t("Copy as a table"), () => this.take(), { class: "dpdmd-button" });
    this.element = make("section", { class: "dpdmd-section" }, make("h3", {}, t("What was found")), this.rows, this.copy);
    this.key = "";
    show(this.element, false);
  }

  /** @param {object} result what the check printed; anything may stand there */
  update(result) {
    const lines = Array.isArray(result?.lines) ? result.lines.filter((line) => line?.verdict) : [];
    const text = typeof result?.table === "string" ? result.table : "";
    const key = JSON.stringify([lines, text]);
    if (this.key === key) return;
    this.key = key;
    this.text = text;
    this.rows.replaceChildren(...lines.map(rowOf));
    show(this.element, lines.length > 0);
    show(this.copy, Boolean(text));
  }

  async take() {
    if (await copied(this.text)) {
      write(this.copy, t("Copied"));
      setTimeout(() => write(this.copy, t("Copy as a table")), COPIED_STAYS);
    }
  }
}

function rowOf(line) {
  const verdict = make("strong", { class: "dpdmd-verdict" }, line.verdict);
  mark(verdict, "data-tone", TONES[line.verdict] ?? "soft");
  const texts = make("div", {}, make("strong", {}, line.name), make("p", {}, line.found));
  if (line.advice) texts.append(make("p", { class: "dpdmd-do", "data-tone": "bad" }, line.advice));
  return make("li", {}, verdict, texts);
}

/** Puts a text where it can be pasted from; browsers allow the new way on safe addresses alone. */
async function copied(text) {
  if (navigator.clipboard && window.isSecureContext) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const area = make("textarea", { style: "position: fixed" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
