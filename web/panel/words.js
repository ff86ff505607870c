/** What states, times and numbers are called. */

import { later, t } from "./language.js";

/** State -> [words, icon, tone]. */
const STATES = {
  new: [later("Not started"), "fresh", "soft"],
  queued: [later("Waiting"), "waiting", "soft"],
  starting: [later("Starting"), "working", "live"],
  running: [later("Running"), "working", "live"],
  stopping: [later("Stopping"), "working", "live"],
  stopped: [later("Stopped"), "paused", "soft"],
  interrupted: [later("Interrupted"), "warning", "warn"],
  finished: [later("Finished"), "done", "good"],
  failed: [later("Failed"), "failed", "bad"],
};

const KINDS = {
  distill: later("Distillation"),
  check: later("Check"),
  compare: later("Comparison"),
  package: later("Package"),
  setup: later("Set-up"),
};

/** What a job goes through, where these are not steps. */
const UNITS = {
  distill: later("{step} of {steps} updates"),
  check: later("{step} of {steps} parts"),
};

/** States in which a process works, or will. */
export const LIVE = ["queued", "starting", "running", "stopping"];
export const STARTABLE = ["new", "stopped", "interrupted", "failed"];

/** {label, icon, tone} of a state; an unknown one is shown by its own name. */
export function stateOf(name) {
  const [label, icon, tone] = STATES[name] ?? [String(name), "info", "soft"];
  return { label: t(label), icon, tone };
}

export const kindOf = (name) => t(KINDS[name] ?? String(name));

export const isLive = (job) => LIVE.includes(job.state);

/** Share done from 0 to 1; null where nothing is known. */
export function share(job) {
  return job.steps > 0 ? Math.min(1, Math.max(0, job.step / job.steps)) : null;
}

/** "40 s", "12 min", "3 h 20 min", "2 d 4 h"; "" if unknown. */
export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds) || seconds < 0) return "";
  if (seconds < 90) return `${seconds >= 10 ? Math.round(seconds) : seconds.toFixed(1)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  const rest = minutes % 60;
  if (hours < 48) return rest ? `${hours} h ${rest} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Such as "54 of 200 updates · 2.9 s each · 7 min left". */
export function howFar(job) {
  if (!job.steps) return "";
  const far = UNITS[job.kind] ?? later("{step} of {steps} steps");
  const words = [t(far, { step: whole(job.step), steps: whole(job.steps) })];
  if (isLive(job)) {
    if (job.seconds_per_step > 0) words.push(t("{time} each", { time: duration(job.seconds_per_step) }));
    const left = job.state === "running" ? duration(job.seconds_left) : "";
    if (left && job.step < job.steps) words.push(t("{time} left", { time: left }));
  }
  return words.join(" · ");
}

/** The second line of a run in the list. */
export function inShort(job) {
  const words = [stateOf(job.state).label];
  const done = share(job);
  const begun = ["running", "stopping", "stopped", "interrupted"].includes(job.state);
  if (begun && done !== null) words.push(`${Math.round(done * 100)}%`);
  const left = job.state === "running" && job.step < job.steps ? duration(job.seconds_left) : "";
  if (left) words.push(t("{time} left", { time: left }));
  if (typeof job.place === "number") words.push(t("place {place} in the queue", { place: job.place + 1 }));
  if (!isLive(job)) words.push(day(job.updated_at));
  return words.join(" · ");
}

const CLOCK = { hour: "2-digit", minute: "2-digit" };
const DATE = { day: "numeric", month: "short" };

/** The time if it was today, the day otherwise. */
export function day(seconds) {
  if (!seconds) return "";
  const then = new Date(seconds * 1000);
  const today = then.toDateString() === new Date().toDateString();
  if (today) return then.toLocaleTimeString([], CLOCK);
  const year = then.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  return then.toLocaleDateString([], { ...DATE, ...year });
}

export const whole = (value) => Math.round(value ?? 0).toLocaleString("en");

/** A number as short as it can be read: 0.0123, 12.3, 1.2e-5. */
export function number(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

/** The name of a file without its folders, whichever system wrote the path. */
export const fileName = (path) => String(path).split(/[\\/]/).pop();
