/** The card that is there while the trainer is not installed, or is older than this version. */

import { button, make, mark, show, write } from "./dom.js";
import { later, t } from "./language.js";
import { howFar, isLive, share, stateOf } from "./words.js";

const MISSING = later(
  "Sampling with a DP-DMD LoRA works already. To train one, set up the trainer: it gets an " +
    "environment of its own, and this program's stays as it is. It takes some GB of disk.",
);
const OUTDATED = later("The trainer's environment is of an older version. Bring it up to date before you train.");

export class SetupCard {
  /** @param {() => Promise<void>} setUp starts the set-up */
  constructor(setUp) {
    this.title = make("h3");
    this.words = make("p", { class: "dpdmd-soft" });
    this.start = button(t("Set it up"), setUp, { class: "dpdmd-button dpdmd-main" });
    this.command = make("code", { class: "dpdmd-command", tabindex: 0 });
    this.byHand = make("p", { class: "dpdmd-soft" }, t("Or in a terminal: "), this.command);
    this.fill = make("i");
    const bar = { class: "dpdmd-bar", role: "progressbar", "aria-label": t("Set-up") };
    this.bar = make("div", { ...bar, "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
    this.said = make("p", { class: "dpdmd-said" });
    this.log = make("pre", { class: "dpdmd-log", tabindex: 0 });
    this.logBox = make("details", { class: "dpdmd-folded" }, make("summary", {}, t("Log")), this.log);
    const parts = [this.words, this.bar, this.said, this.start, this.byHand, this.logBox];
    this.tell("");
    this.element = make("section", { class: "dpdmd-card", "aria-label": t("Trainer") }, this.title, ...parts);
  }

  /** @param {{ready: boolean, outdated: boolean, command: string, setup: object|null}} trainer */
  update(trainer) {
    const job = trainer.setup;
    const works = Boolean(job) && isLive(job);
    show(this.element, works || !trainer.ready || trainer.outdated);
    const missing = !trainer.ready && !trainer.outdated;
    write(this.title, works ? t("Setting up the trainer") : missing ? t("Trainer not installed") : t("Trainer outdated"));
    write(this.words, t(missing || works ? MISSING : OUTDATED));
    show(this.words, !works);
    write(this.start, job?.state === "failed" ? t("Try again") : missing ? t("Set it up") : t("Update it"));
    show(this.start, !works);
    write(this.command, trainer.command ?? "");
    show(this.byHand, !works && Boolean(trainer.command));
    this.progress(job, works);
  }

  progress(job, works) {
    show(this.bar, works);
    const done = works ? share(job) : null;
    mark(this.bar, "data-unknown", works && done === null ? "" : null);
    mark(this.bar, "aria-valuenow", done === null ? null : Math.round(done * 100));
    this.fill.style.width = `${(done ?? 0) * 100}%`;
    const failed = job && ["failed", "interrupted", "stopped"].includes(job.state);
    const words = works ? [job.message || howFar(job) || stateOf(job.state).label] : failed ? [job.message] : [];
    write(this.said, words.join(""));
    mark(this.said, "data-tone", failed ? "bad" : null);
    show(this.said, words.length > 0 && Boolean(words[0]));
  }

  /** The end of the set-up's log; null where there is none. */
  tell(log) {
    show(this.logBox, Boolean(log));
    write(this.log, log ?? "");
    this.log.scrollTop = this.log.scrollHeight;
  }
}
