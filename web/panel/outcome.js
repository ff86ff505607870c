/** What a run that has made something offers: use it, its report, a package to share. */

import { button, make, show } from "./dom.js";
import { t } from "./language.js";

export class Outcome {
  /** @param {{use?: (path: string) => void, report: (id: string) => string, share: (id: string) => void}} does */
  constructor(does) {
    this.does = does;
    this.job = null;
    const use = { class: "dpdmd-button dpdmd-main", title: t("Adds the nodes that sample with this LoRA.") };
    this.use = button(t("Use it"), () => does.use(this.job.result.lora), use);
    this.report = make("a", { class: "dpdmd-button", target: "_blank", rel: "noopener" }, t("Open report"));
    const share = { title: t("Queues a package: the LoRA with pictures and texts for sites that share them.") };
    this.share = button(t("Share"), () => does.share(this.job.id), share);
    this.element = make("div", { class: "dpdmd-buttons" }, this.use, this.report, this.share);
    show(this.report, false);
  }

  /** What the list knows of the run. */
  update(job) {
    if (this.job?.id !== job.id) show(this.report, false);
    this.job = job;
    const made = job.kind === "distill" && typeof job.result?.lora === "string" && job.state !== "running";
    show(this.use, made && Boolean(this.does.use));
    show(this.share, made);
    this.tidy();
  }

  /** What its own page says. */
  detail(run) {
    const there = Boolean(run.report) && Boolean(this.job);
    if (there) this.report.href = this.does.report(this.job.id);
    show(this.report, there);
    this.tidy();
  }

  tidy() {
    show(this.element, [this.use, this.report, this.share].some((one) => !one.hidden));
  }
}
