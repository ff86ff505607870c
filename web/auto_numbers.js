/** Numbers of our nodes for which 0 takes what suits: the page shows "auto" for it. */

const OPTION = "dpdmd_auto";
const WORD = "auto";

/** Lets nodes of this type show the word. */
export function addAuto(nodeType, nodeData) {
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  const names = Object.keys(inputs).filter((name) => inputs[name]?.[1]?.[OPTION]);
  if (!names.length) return;
  const before = nodeType.prototype.onNodeCreated;
  nodeType.prototype.onNodeCreated = function () {
    const result = before?.apply(this, arguments);
    for (const widget of this.widgets ?? []) if (names.includes(widget.name)) showAuto(widget);
    return result;
  };
}

/** What is drawn in place of 0; pages that draw otherwise show the number. */
function showAuto(widget) {
  const drawn = accessor(widget, "_displayValue");
  if (!drawn?.get) return;
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      return Number(this.value) === 0 ? WORD : drawn.get.call(this);
    },
  });
}

function accessor(object, name) {
  for (let at = object; at; at = Object.getPrototypeOf(at)) {
    const found = Object.getOwnPropertyDescriptor(at, name);
    if (found) return found;
  }
  return null;
}
