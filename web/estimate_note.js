/** Says on DP-DMD Distill what its run will take, before it is queued. */

import { showText } from "./node_notes.js";
import { Away } from "./panel/client.js";

const NODE = "DPDMDDistill";
const NAME = "dpdmd_estimate";
/** Inputs that decide neither time nor memory. */
const OTHERS = ["prompts", "prompts_file", "output_name", "mode", "teacher_negative"];

/**
 * Lets nodes of this type say it, whenever what decides it has changed.
 *
 * @param {(values: object) => Promise<string>} ask what a run with these values will take
 * @param {number} quiet milliseconds without a change after which it is asked for
 */
export function addEstimate(nodeType, nodeData, ask, quiet = 600) {
  if (nodeData.name !== NODE) return;
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  const names = Object.keys(inputs).filter((name) => !OTHERS.includes(name));
  const notes = new WeakMap();
  const look = (node) => {
    if (!notes.has(node)) notes.set(node, new EstimateNote(node, names, ask));
    notes.get(node).soon(quiet);
  };
  after(nodeType.prototype, "onNodeCreated", (node) => {
    for (const widget of node.widgets ?? []) {
      if (names.includes(widget.name)) after(widget, "callback", () => look(node));
    }
    look(node);
  });
  after(nodeType.prototype, "onConfigure", look);
  after(nodeType.prototype, "onConnectionsChange", look);
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
  constructor(node, names, ask) {
    Object.assign(this, { node, names, ask, timer: 0, asked: "" });
  }

  soon(quiet) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), quiet);
  }

  end() {
    clearTimeout(this.timer);
    this.asked = "";
  }

  async look() {
    const wired = this.wired();
    const values = this.values();
    const asked = JSON.stringify([wired, values]);
    if (asked === this.asked) return;
    this.asked = asked;
    const answer = wired.length ? { text: unknown(wired) } : await this.answer(values);
    if (asked !== this.asked) return; // it has changed meanwhile
    if (answer.again) this.asked = "";
    showText(this.node, NAME, answer.text);
  }

  /** The inputs whose values come from elsewhere. */
  wired() {
    const inputs = (this.node.inputs ?? []).filter((input) => input.link != null);
    return inputs.map((input) => input.widget?.name ?? input.name).filter((name) => this.names.includes(name));
  }

  values() {
    const own = (this.node.widgets ?? []).filter((widget) => this.names.includes(widget.name));
    return Object.fromEntries(own.map((widget) => [widget.name, widget.value]));
  }

  async answer(values) {
    try {
      return { text: await this.ask(values) };
    } catch (error) { // the next time the file may be there, or the server
      return { text: error instanceof Away ? "" : `No estimate. ${error.message}`, again: true };
    }
  }
}

function unknown(wired) {
  const come = wired.length > 1 ? "come by wires" : "comes by a wire";
  return `Memory and time are not known before it runs: ${wired.join(", ")} ${come}.`;
}
