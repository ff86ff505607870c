/** What a node of ours says (its "text" output, or before it runs) in a read-only box on the node. */

const OURS = "DPDMD";
const NAME = "dpdmd_note";
const LINE = 17; // pixels, as in the style sheet
const LETTER = 6.3; // pixels, about
const MOST_LINES = 10;
let refused = []; // nodes that say what the host found before it queued the graph

/** Lets nodes of this type show their notes. */
export function addNotes(nodeType, nodeData) {
  if (!nodeData.name?.startsWith(OURS)) return;
  const before = nodeType.prototype.onExecuted;
  nodeType.prototype.onExecuted = function (message) {
    before?.apply(this, arguments);
    showNote(this, message);
  };
}

/** Shows notes again that the host has kept, for instance when a workflow is opened once more. */
export function restoreNotes(graph, outputs) {
  for (const [id, output] of Object.entries(outputs ?? {})) {
    const node = nodeAt(graph, id);
    if (node?.type?.startsWith(OURS)) showNote(node, output);
  }
}

/** Writes on a node of ours why it failed. */
export function showError(graph, error) {
  if (!error?.node_type?.startsWith(OURS)) return;
  const node = nodeAt(graph, String(error.node_id));
  if (node) showNote(node, { text: [error.exception_message ?? ""] }, "error");
}

/** Writes on nodes of ours what the host found before it queued the graph, and takes back what it does no longer find.
 * @param {object|null} errors by node's id, as the host keeps them: {class_type, errors: [{details, message}]}
 */
export function showRefusals(graph, errors) {
  const before = refused;
  refused = [];
  for (const [id, found] of Object.entries(errors ?? {})) {
    const node = found?.class_type?.startsWith(OURS) ? nodeAt(graph, id) : null;
    if (!node) continue;
    showNote(node, { text: [...new Set((found.errors ?? []).map(reasonOf))] }, "error");
    refused.push(node);
  }
  for (const node of before) if (!refused.includes(node)) showNote(node, {});
}

/** What a check before queueing found; the host may put the name of each input that was looked at before it. */
function reasonOf(error) {
  const text = error.details || error.message || "";
  const lead = `${error.extra_info?.input_name} - `;
  return text.startsWith(lead) ? text.slice(lead.length) : text;
}

/** The node of an id; that of one inside subgraphs is "12:3", from the outside in. */
function nodeAt(graph, id) {
  let node = null;
  for (const part of String(id).split(":")) {
    const inside = node ? node.subgraph : graph;
    node = inside?.getNodeById?.(part) ?? inside?.getNodeById?.(Number(part)) ?? null;
    if (!node) return null;
  }
  return node;
}

function showNote(node, message, kind = "note") {
  const texts = Array.isArray(message?.text) ? message.text : [];
  showText(node, NAME, texts.filter((part) => typeof part === "string" && part).join("\n"), kind);
}

/** Writes into the box of that name on a node; without a text there is none. */
export function showText(node, name, text, kind = "note") {
  const widget = node.widgets?.find((one) => one.name === name) ?? (text ? addWidget(node, name) : null);
  if (!widget) return;
  widget.element.textContent = text;
  widget.element.dataset.kind = kind;
  widget.dpdmdHeight = text ? heightOf(text, node.size[0]) + 2 * (widget.margin ?? 10) : 0;
  widget.element.style.display = text ? "" : "none";
  grow(node);
}

function addWidget(node, name) {
  const box = document.createElement("div");
  box.className = "dpdmd-note";
  box.setAttribute("role", "note");
  box.addEventListener("wheel", (event) => {
    if (box.scrollHeight > box.clientHeight) event.stopPropagation();
  });
  const widget = node.addDOMWidget(name, name, box, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => box.textContent,
    setValue: () => {},
    getMinHeight: () => widget?.dpdmdHeight ?? 0,
    getMaxHeight: () => widget?.dpdmdHeight ?? 0,
  });
  widget.serialize = false; // neither in the workflow nor in the prompt
  return widget;
}

function heightOf(text, width) {
  const letters = Math.max(16, (width - 40) / LETTER);
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / letters)), 0);
  return Math.min(lines, MOST_LINES) * LINE + 14;
}

function grow(node) {
  const least = node.computeSize();
  if (node.size[1] < least[1]) node.setSize([node.size[0], least[1]]);
  node.setDirtyCanvas?.(true, true);
}
