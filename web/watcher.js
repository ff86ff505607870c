/** Says when a run of the background has ended, whether the panel is open or not. */

import { later, t } from "./panel/language.js";
import { isLive } from "./panel/words.js";

const SOON = 5000; // milliseconds between two looks while a run is under way
const ENDS = {
  finished: ["success", later("DP-DMD: {title} finished")],
  stopped: ["info", later("DP-DMD: {title} has stopped and kept what there was")],
  failed: ["error", later("DP-DMD: {title} failed")],
  interrupted: ["warn", later("DP-DMD: {title} was interrupted")],
};
const STAYS = 10000; // milliseconds

export class Watcher {
  /**
   * @param {{state: () => Promise<{jobs: object[]}>}} client
   * @param {{toast: (message: object) => void, finished: (job: object) => void}} host
   */
  constructor(client, host) {
    this.client = client;
    this.host = host;
    this.known = new Map(); // id -> state at the last look
    this.timer = 0;
    this.busy = false;
    this.first = true;
  }

  /** Looks soon, unless it does so anyway. */
  wake() {
    if (!this.timer) this.timer = setTimeout(() => this.look(), 0);
  }

  /** Looks at once, and goes on looking while something is under way. */
  async look() {
    clearTimeout(this.timer);
    let jobs = null;
    try {
      jobs = (await this.client.state()).jobs;
    } catch {
      // the server is away or has no such address; the panel says so where it is open
    }
    if (jobs) this.compare(jobs);
    const busy = jobs ? jobs.some(isLive) : this.busy;
    this.busy = busy;
    this.timer = busy ? setTimeout(() => this.look(), SOON) : 0;
  }

  compare(jobs) {
    for (const job of jobs) {
      const before = this.known.get(job.id);
      const ended = ENDS[job.state];
      const newly = before ? isLive({ state: before }) : !this.first;
      if (ended && newly && before !== job.state) this.tell(job, ...ended);
    }
    this.known = new Map(jobs.map((job) => [job.id, job.state]));
    this.first = false;
  }

  tell(job, severity, words) {
    const detail = job.state === "failed" || job.state === "interrupted" ? job.message : "";
    this.host.toast({ severity, summary: t(words, { title: job.title }), detail, life: STAYS });
    if (job.kind === "distill") this.host.finished(job);
  }
}
