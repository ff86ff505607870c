/** Small helpers for the page. Every text goes in as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * A new element. Attributes named on… become listeners; null and undefined ones are left out.
 * Children are elements or texts.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  fill(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The same for a part of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  fill(element, attributes);
  element.append(...children);
  return element;
}

function fill(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Writes a text only if it is another one: what is selected or read aloud stays undisturbed. */
export function write(element, text) {
  const words = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== words) element.textContent = words;
}

/** Sets an attribute only if it changes; null takes it away. */
export function mark(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}

/** Shows or hides an element. */
export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/**
 * Puts children into the given order and takes others out. What is in place already is not touched,
 * so that the focus stays where it is.
 */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  if (focused && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

/** A button with a text. */
export function button(label, onclick, attributes = {}) {
  return make("button", { type: "button", class: "dpdmd-button", onclick, ...attributes }, label);
}

const ICONS = {
  waiting: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13ZM8 4v4l2.8 1.8",
  working: "M8 1.5A6.5 6.5 0 1 1 1.5 8",
  done: "M2.5 8.5l3.5 3.5 7.5-8",
  failed: "M4 4l8 8M12 4l-8 8",
  paused: "M5.5 3.5v9M10.5 3.5v9",
  warning: "M8 2 1.5 13.5h13L8 2ZM8 6.5v3.2M8 11.6v.4",
  info: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13ZM8 7.2v4M8 4.6v.4",
  fresh: "M8 4.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7Z",
  back: "M10 3 5 8l5 5",
  pencil: "M2.5 13.5 3.3 10.6 10.8 3.1l2.1 2.1-7.5 7.5-2.9.8Z",
};

/** A drawn icon; `name` is a key of ICONS. It says nothing to a screen reader. */
export function icon(name) {
  const path = draw("path", { d: ICONS[name] ?? "" });
  const attributes = { viewBox: "0 0 16 16", class: "dpdmd-icon", "aria-hidden": "true" };
  const element = draw("svg", attributes, path);
  element.dataset.icon = name;
  return element;
}

/** Makes an icon another one, in place. */
export function setIcon(element, name) {
  if (element.dataset.icon === name) return;
  element.dataset.icon = name;
  element.firstElementChild.setAttribute("d", ICONS[name] ?? "");
}
