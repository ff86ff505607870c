/** The panel: looks at the server while it can be seen, and passes on what has changed. */

import { Away } from "./client.js";
import { button, make, mark, show, write } from "./dom.js";
import { later, t } from "./language.js";
import { RunList } from "./run_list.js";
import { RunView } from "./run_view.js";
import { SetupCard } from "./setup_card.js";
import { isLive } from "./words.js";

const SOON = 1000; // milliseconds between two looks while something runs
const LATER = 5000;
/** A run that was deleted elsewhere between two looks; the next list is without it. */
const GONE = 404;
const AWAY = later("Server away, trying again …");
/** A message of something done goes after so long; one of something refused stays. */
const MESSAGE_STAYS = 6000;
const UNDO_STAYS = 30000;

export class Panel {
  /**
   * @param {import("./client.js").Client} client
   * @param {{addNode?: () => void, openExample?: () => Promise<void>, use?: (path: string) => Promise<void>,
   *   busy?: () => void, finished?: (job: object) => void}} host
   */
  constructor(client, host = {}) {
    this.client = client;
    this.host = host;
    this.jobs = [];
    this.selected = null;
    this.seen = null; // what the run's page last showed
    this.watched = new Map(); // id -> state at the last look
    this.timer = 0;
    this.turn = 0;
    this.build();
  }

  build() {
    this.away = make("p", { class: "dpdmd-away", role: "status" });
    this.told = make("span");
    this.undo = button(t("Undo"), () => this.restore(), { class: "dpdmd-button dpdmd-undo" });
    this.message = make("p", { class: "dpdmd-message", role: "status" }, this.told, this.undo);
    this.trashed = null; // what a deleted run is called in the trash
    this.setup = new SetupCard(() => this.setUp());
    this.list = new RunList((id) => this.open(id));
    const image = (job, name) => this.client.image(job.id, name, job.created_at);
    const act = (id, action, body) => this.act(id, action, body);
    const use = this.host.use ? (path) => this.tried(this.host.use(path)) : undefined;
    const report = (id) => this.client.report(id);
    const share = (id) => this.act(id, "share");
    this.view = new RunView({ back: () => this.close(), act, image, use, report, share });
    this.nothing = this.emptyState();
    this.all = make("div", { class: "dpdmd-all" }, this.setup.element, this.nothing, this.list.element);
    this.body = make("div", { class: "dpdmd-body" }, this.all, this.view.element);
    const heading = make("header", { class: "dpdmd-header" }, make("h1", {}, "DP-DMD"), this.away);
    this.element = make("div", { class: "dpdmd dpdmd-panel" }, heading, this.body, this.message);
    for (const part of [this.away, this.message, this.setup.element, this.nothing, this.view.element]) {
      show(part, false);
    }
  }

  emptyState() {
    const words = t(
      "Add the node DP-DMD Distill, choose a checkpoint, write some prompts, and queue it. " +
        "Its runs are listed here, and you can watch them while they train.",
    );
    const { addNode, openExample } = this.host;
    const buttons = make("div", { class: "dpdmd-buttons" });
    if (addNode) buttons.append(button(t("Add the node"), addNode, { class: "dpdmd-button dpdmd-main" }));
    if (openExample) buttons.append(button(t("Open the example"), () => this.tried(openExample())));
    const title = make("h2", {}, t("No runs yet"));
    return make("section", { class: "dpdmd-empty" }, title, make("p", { class: "dpdmd-soft" }, words), buttons);
  }

  /** Puts the panel into an element of the page and begins to look; doing it twice does no harm. */
  mount(parent) {
    if (this.mounted && this.element.parentElement === parent) return;
    this.unmount();
    parent.replaceChildren(this.element);
    this.mounted = true;
    this.onVisible = () => this.wake();
    document.addEventListener("visibilitychange", this.onVisible);
    this.sight = new IntersectionObserver(this.onVisible);
    this.sight.observe(this.element);
    this.wake();
  }

  /** Takes it out and asks nothing more; what it shows is there again when it comes back. */
  unmount() {
    if (!this.mounted) return;
    this.mounted = false;
    clearTimeout(this.timer);
    this.turn++;
    document.removeEventListener("visibilitychange", this.onVisible);
    this.sight.disconnect();
    this.view.images.close();
    this.element.remove();
  }

  visible() {
    return document.visibilityState === "visible" && this.element.getClientRects().length > 0;
  }

  /** Looks at once; answers to earlier looks no longer count. */
  wake() {
    clearTimeout(this.timer);
    if (!this.mounted || !this.visible()) return;
    this.look(++this.turn);
  }

  async look(turn) {
    let wait = LATER;
    try {
      const state = await this.client.state();
      if (turn !== this.turn) return;
      this.draw(state);
      if (await this.lookCloser(state, turn)) wait = this.busy(state) ? SOON : LATER;
      this.connected(true);
    } catch (error) {
      if (turn !== this.turn) return;
      if (error instanceof Away) this.connected(false);
      else this.say(error.message, "bad");
      wait = error instanceof Away ? 2 * SOON : LATER;
    }
    if (turn === this.turn && this.visible()) this.timer = setTimeout(() => this.wake(), wait);
  }

  busy(state) {
    return state.jobs.some(isLive) || Boolean(state.trainer.setup && isLive(state.trainer.setup));
  }

  draw(state) {
    mark(this.element, "data-theme", isDark(this.element) ? "dark" : "light");
    this.state = state;
    const setup = state.trainer.setup;
    const outside = (job) => job.id !== setup?.id || state.trainer.ready;
    this.jobs = state.jobs.filter(outside);
    this.setup.update(state.trainer);
    if (!this.jobs.some((job) => job.id === this.selected)) this.selected = null;
    this.list.update(this.jobs, this.selected);
    show(this.nothing, this.jobs.length === 0 && this.setup.element.hidden);
    show(this.list.element, this.jobs.length > 0);
    this.drawSelected();
    this.notice();
    if (this.busy(state)) this.host.busy?.();
  }

  drawSelected() {
    const job = this.jobs.find((one) => one.id === this.selected);
    const last = this.jobs.filter((one) => one.state === "queued").length - 1;
    if (job) this.view.update(job, last);
    show(this.view.element, Boolean(job));
    mark(this.element, "data-selected", job ? "" : null);
  }

  /** Tells the host of distillations that have come to an end since the last look. */
  notice() {
    for (const job of this.jobs) {
      const before = this.watched.get(job.id);
      const ended = job.state === "finished" || job.state === "stopped";
      if (before && before !== job.state && ended && job.kind === "distill") this.host.finished?.(job);
      this.watched.set(job.id, job.state);
    }
  }

  /** Fetches what only a run's own page has, if something in it can have changed. */
  async lookCloser(state, turn) {
    const setup = state.trainer.setup;
    const shown = !this.setup.element.hidden && setup ? setup : null;
    const job = this.jobs.find((one) => one.id === this.selected);
    const key = job ? `${job.id}/${job.updated_at}/${job.state}` : "";
    if (shown) this.setup.tell((await this.run(shown.id))?.log);
    if (job && key !== this.seen) {
      const run = await this.run(job.id);
      if (turn !== this.turn || this.selected !== job.id) return false;
      if (run) this.view.detail(run);
      this.seen = key;
    }
    return turn === this.turn;
  }

  /** A run's own page; null if it was deleted since the last look. */
  async run(id) {
    try {
      return await this.client.run(id);
    } catch (error) {
      if (error.status === GONE) return null;
      throw error;
    }
  }

  open(id) {
    this.selected = id;
    this.seen = null;
    this.say("");
    if (this.state) this.draw(this.state);
    this.element.scrollTop = 0;
    this.view.title.focus({ preventScroll: true });
    this.wake();
  }

  close() {
    const id = this.selected;
    this.selected = null;
    if (this.state) this.draw(this.state);
    this.list.focus(id);
  }

  async act(id, action, body) {
    await this.tried(
      this.client.act(id, action, body).then((job) => {
        if (["duplicate", "check", "share"].includes(action)) this.selected = job.id;
        if (action === "delete") this.selected = null;
        this.trashed = action === "delete" ? (job.trash ?? null) : null;
        this.seen = null;
        this.say(action === "stop" ? stopped(job) : t(SAID[action] ?? ""), "good");
      }),
    );
    this.wake();
  }

  /** Takes the run that was deleted last out of the trash. */
  async restore() {
    const name = this.trashed;
    await this.tried(
      this.client.restore(name).then((job) => {
        this.trashed = null;
        this.selected = job.id;
        this.seen = null;
        this.say(t("It is back."), "good");
      }),
    );
    this.wake();
  }

  async setUp() {
    await this.tried(this.client.setUp());
    this.wake();
  }

  /** Waits, and says what went wrong. */
  async tried(promise) {
    try {
      await promise;
    } catch (error) {
      this.say(error instanceof Away ? t(AWAY) : error.message, "bad");
    }
  }

  say(words, tone = "soft") {
    clearTimeout(this.quiet);
    write(this.told, words);
    mark(this.message, "data-tone", tone);
    show(this.undo, Boolean(words) && this.trashed !== null);
    show(this.message, Boolean(words));
    const stays = this.trashed === null ? MESSAGE_STAYS : UNDO_STAYS;
    if (words && tone !== "bad") this.quiet = setTimeout(() => this.quieten(), stays);
  }

  quieten() {
    this.trashed = null;
    this.say("");
  }

  connected(yes) {
    write(this.away, yes ? "" : t(AWAY));
    show(this.away, !yes);
    mark(this.element, "data-away", yes ? null : "");
  }
}

const SAID = {
  start: later("It is in the queue."),
  check: later("The check is in the queue."),
  duplicate: later("The copy is not started yet."),
  rename: later("Renamed."),
  delete: later("It is in the trash."),
  share: later("The package is in the queue."),
};

/** What is said after a stop was asked for. */
function stopped(job) {
  if (!isLive(job)) return t("It is out of the queue.");
  if (job.kind !== "distill") return t("It stops.");
  return t("It stops after the current update and keeps what there is.");
}

/** Whether the page's letters are bright, whatever its theme is called. */
function isDark(element) {
  const colour = getComputedStyle(element).color;
  const [red, green, blue] = (colour.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  if (colour.startsWith("rgb")) return 0.3 * red + 0.59 * green + 0.11 * blue > 128;
  return red > 0.5; // lightness, or red of 0 to 1
}
