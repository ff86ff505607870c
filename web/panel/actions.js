/** The buttons of a run: what its state allows, a field for its name, and a question before deleting. */

import { button, make, mark, show, write } from "./dom.js";
import { later, t } from "./language.js";
import { LIVE, STARTABLE } from "./words.js";

const CHECK = later(
  "Trains nothing: tells in about fifteen minutes on a card whether this checkpoint can be distilled here " +
    "with these settings.",
);
const START_LABELS = { new: later("Start"), failed: later("Try again") };

export class Actions {
  /** @param {(action: string, body?: object) => Promise<void>} act sends an action */
  constructor(act) {
    this.act = act;
    this.job = null;
    this.start = this.make(t("Resume"), () => act("start"), "dpdmd-main");
    this.stop = this.make(t("Stop and keep"), () => act("stop"));
    this.up = this.make(t("Move up"), () => act("move", { place: this.job.place - 1 }));
    this.down = this.make(t("Move down"), () => act("move", { place: this.job.place + 1 }));
    this.duplicate = this.make(t("Duplicate"), () => act("duplicate"));
    this.check = this.make(t("Check its checkpoint"), () => act("check"));
    mark(this.check, "title", t(CHECK));
    this.rename = this.make(t("Rename"), () => this.ask("rename"));
    this.delete = this.make(t("Delete"), () => this.ask("delete"));
    const changes = [this.up, this.down, this.duplicate, this.check, this.rename, this.delete];
    const all = [this.start, this.stop, ...changes];
    this.row = make("div", { class: "dpdmd-buttons" }, ...all);
    this.element = make("div", {}, this.row, this.renaming(), this.deleting());
  }

  make(label, onclick, more = "") {
    return button(label, onclick, { class: `dpdmd-button ${more}` });
  }

  renaming() {
    const words = { class: "dpdmd-input", type: "text", maxlength: 200, "aria-label": t("New name") };
    this.name = make("input", { ...words, onkeydown: (event) => event.stopPropagation() });
    const cancel = this.make(t("Cancel"), () => this.done(this.rename));
    const save = make("button", { type: "submit", class: "dpdmd-button dpdmd-main" }, t("Save"));
    const attributes = { class: "dpdmd-ask", onsubmit: (event) => this.save(event) };
    this.renameBox = make("form", attributes, this.name, save, cancel);
    this.renameBox.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.done(this.rename);
    });
    this.renameBox.hidden = true;
    return this.renameBox;
  }

  deleting() {
    const words = t("Move this run to the trash? A LoRA that it has written stays where it is.");
    this.yes = this.make(t("Delete"), () => this.sure(), "dpdmd-danger");
    const no = this.make(t("Cancel"), () => this.done(this.delete));
    this.deleteBox = make("div", { class: "dpdmd-ask", role: "group" }, make("p", {}, words), this.yes, no);
    this.deleteBox.hidden = true;
    return this.deleteBox;
  }

  update(job, last) {
    if (this.job?.id !== job.id) this.done(null);
    this.job = job;
    const { state, place } = job;
    write(this.start, t(START_LABELS[state] ?? "Resume"));
    write(this.stop, state === "queued" ? t("Take out of the queue") : t("Stop and keep"));
    show(this.start, STARTABLE.includes(state));
    show(this.stop, ["queued", "starting", "running"].includes(state));
    show(this.up, typeof place === "number" && place > 0);
    show(this.down, typeof place === "number" && place < last);
    show(this.duplicate, job.kind === "distill");
    show(this.check, job.kind === "distill");
    show(this.delete, !LIVE.includes(state) || state === "queued");
    if (this.delete.hidden) show(this.deleteBox, false);
  }

  ask(what) {
    show(this.renameBox, what === "rename");
    show(this.deleteBox, what === "delete");
    if (what === "rename") {
      this.name.value = this.job.title;
      this.name.focus();
      this.name.select();
    } else {
      this.yes.focus();
    }
  }

  async save(event) {
    event.preventDefault();
    await this.act("rename", { title: this.name.value });
    this.done(this.rename);
  }

  async sure() {
    this.done(null);
    await this.act("delete");
  }

  /** Puts the questions away; the keyboard goes back to `button`. */
  done(target) {
    show(this.renameBox, false);
    show(this.deleteBox, false);
    target?.focus();
  }
}
