/** Says on DP-DMD Distill what its run will take, before it is queued. */

import { showText } from "./node_notes.js";
import { Away } from "./panel/client.js";
import { t } from "./panel/language.js";

const NODE = "DPDMDDistill";
const NAME = "dpdmd_estimate";
/** Core's loaders of a MODEL: the input that names the file, and what the node's own list puts before that. */
const LOADERS = {
  CheckpointLoaderSimple: { input: "ckpt_name", folder: "" },
  UNETLoader: { input: "unet_name", folder: "diffusion_models/" },
};
/** Inputs that nothing is said of. */
const OTHERS = ["output_name", "mode", "teacher_negative"];
/** Inputs of which something is said where they do not come by wires, but neither time nor memory. */
const PROMPTS = ["prompts", "prompts_file"];

/**
 * Lets nodes of this type say it, whenever what decides it has changed.
 *
 * @param {(values: object) => Promise<string>} ask what a run with these values will take
 * @param {number} quiet for so many milliseconds nothing must have changed before it is asked for
 */
export function addEstimate(nodeType, nodeData, ask, quiet = 600) {
  if (nodeData.name !== NODE) return;
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  const names = Object.keys(inputs).filter((name) => !OTHERS.includes(name));
  const notes = new WeakMap();
  const look = (node) => {
    if (!notes.has(node)) notes.set(node, new EstimateNote(node, names, { ask, quiet }));
    notes.get(node).soon();
  };
  after(nodeType.prototype, "onNodeCreated", (node) => {
    for (const widget of node.widgets ?? []) {
      if (names.includes(widget.name)) after(widget, "callback", () => look(node));
    }
    look(node);
  });
  after(nodeType.prototype, "onConfigure", look);
  after(nodeType.prototype, "onConnectionsChange", look);
  after(nodeType.prototype, "onExecuted", (node) => {
    notes.get(node)?.end(); // a run has measured its time
    look(node);
  });
  after(nodeType.prototype, "onRemoved", (node) => notes.get(node)?.end());
}

/** Calls a function with the object whenever a method of it was called. */
function after(object, method, then) {
  const before = object[method];
  object[method] = function () {
    const result = before?.apply(this, arguments);
    then(this);
    return result;
  };
}

class EstimateNote {
  constructor(node, names, how) {
    Object.assign(this, { node, names, ...how, timer: 0, asked: "", followed: new WeakSet() });
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), this.quiet);
  }

  end() {
    clearTimeout(this.timer);
    this.asked = "";
  }

  async look() {
    const loader = this.loader();
    const known = [...PROMPTS, ...(loader ? ["model", "checkpoint"] : [])];
    const wired = this.wired().filter((name) => !known.includes(name));
    const values = { ...this.values(), ...(loader && { checkpoint: loader.checkpoint }) };
    const asked = JSON.stringify([wired, values]);
    if (asked === this.asked) return;
    this.asked = asked;
    const answer = wired.length ? { text: unknown(wired) } : await this.answer(values);
    if (asked !== this.asked) return; // it has changed meanwhile
    if (answer.again) this.asked = "";
    showText(this.node, NAME, answer.text);
  }

  /** What core's loader of a checkpoint has chosen, where the MODEL comes straight from one; else null. */
  loader() {
    const at = (this.node.inputs ?? []).findIndex((input) => input.name === "model" && input.link != null);
    const from = at < 0 ? null : this.node.getInputNode?.(at);
    const known = LOADERS[from?.type];
    if (!known || from.inputs?.some((input) => input.link != null)) return null;
    const widget = from.widgets?.find((one) => one.name === known.input);
    if (!widget) return null;
    if (!this.followed.has(widget)) after(widget, "callback", () => this.soon());
    this.followed.add(widget);
    return { checkpoint: known.folder + widget.value };
  }

  /** The inputs whose values come from elsewhere. */
  wired() {
    const inputs = (this.node.inputs ?? []).filter((input) => input.link != null);
    return inputs.map((input) => input.widget?.name ?? input.name).filter((name) => this.names.includes(name));
  }

  values() {
    const elsewhere = this.wired();
    const names = this.names.filter((name) => !(PROMPTS.includes(name) && elsewhere.includes(name)));
    const own = (this.node.widgets ?? []).filter((widget) => names.includes(widget.name));
    return Object.fromEntries(own.map((widget) => [widget.name, widget.value]));
  }

  async answer(values) {
    try {
      return { text: await this.ask(values) };
    } catch (error) { // the next time the file may be there, or the server
      return { text: error instanceof Away ? "" : t("No estimate. {why}", { why: error.message }), again: true };
    }
  }
}

function unknown(wired) {
  const names = wired.join(", ");
  if (wired.length > 1) return t("Memory and time are not known before it runs: {names} come by wires.", { names });
  return t("Memory and time are not known before it runs: {names} comes by a wire.", { names });
}
