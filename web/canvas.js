/** What the panel's buttons do on the canvas. */

import { t } from "./panel/language.js";

const FOLDER = new URL(".", import.meta.url).pathname.split("/").filter(Boolean).pop();
const GAP = 60; // pixels between nodes, and around them
const SETTLED = 300; // milliseconds

/** Puts a node into the middle of what is seen of the graph, and selects it. */
export function addNode(app, type) {
  const node = makeNode(type);
  const [x, y, width, height] = seenArea(app);
  app.graph.add(node);
  node.pos = [x + (width - node.size[0]) / 2, y + (height - node.size[1]) / 2];
  app.canvas.selectNode?.(node, false);
  app.canvas.setDirty(true, true);
  return node;
}

/** [x, y, width, height] of what panels leave free of the canvas, from its corner, in pixels. */
function freeArea(app) {
  const canvas = app.canvas.canvas?.getBoundingClientRect?.();
  if (!canvas?.width) return null;
  const free = document.querySelector(".graph-canvas-panel")?.getBoundingClientRect() ?? canvas;
  return free.width > GAP && free.height > GAP
    ? [free.left - canvas.left, free.top - canvas.top, free.width, free.height]
    : [0, 0, canvas.width, canvas.height];
}

/** The same in the graph's own coordinates. */
function seenArea(app) {
  const { offset, scale, visible_area: all } = app.canvas.ds;
  const area = freeArea(app);
  if (!area) return all ?? [0, 0, 800, 600];
  return [area[0] / scale - offset[0], area[1] / scale - offset[1], area[2] / scale, area[3] / scale];
}

/** Shows all of the graph in what panels leave free of the canvas, at most at its own size. */
function showAll(app) {
  const things = [...(app.graph.nodes ?? []), ...(app.graph.groups ?? [])];
  const area = freeArea(app);
  if (!area || !things.length) return;
  const ends = [0, 1].map((side) => [
    Math.min(...things.map((thing) => thing.pos[side])) - GAP,
    Math.max(...things.map((thing) => thing.pos[side] + thing.size[side])) + GAP,
  ]);
  const { ds } = app.canvas;
  ds.scale = Math.min(1, ...ends.map(([from, to], side) => area[2 + side] / (to - from)));
  ends.forEach(([from, to], side) => {
    ds.offset[side] = (area[side] + area[2 + side] / 2) / ds.scale - (from + to) / 2;
  });
  app.canvas.setDirty(true, true);
}

function makeNode(type) {
  const node = window.LiteGraph?.createNode(type);
  if (!node) throw new Error(t("This ComfyUI does not know the node {type}.", { type }));
  return node;
}

/**
 * Puts the nodes that sample with a LoRA on the canvas: its loader, with the LoRA chosen, and the
 * sampler behind it. They are wired to the checkpoint's loader, where the graph has one alone.
 *
 * @param {string} path where the LoRA's file is
 */
export function useLora(app, path) {
  const loader = addNode(app, "DPDMDLoadLora");
  const widget = loader.widgets?.find((one) => one.name === "lora_name");
  const name = listedName(widget?.options?.values ?? [], path);
  if (widget && name) widget.value = name;
  const sampler = makeNode("DPDMDKSampler");
  app.graph.add(sampler);
  sampler.pos = [loader.pos[0] + loader.size[0] + GAP, loader.pos[1]];
  loader.connect(0, sampler, "model");
  loader.connect(1, sampler, "recipe");
  const checkpoints = (app.graph.nodes ?? app.graph._nodes ?? []).filter((node) => CHECKPOINTS.includes(node.type));
  if (checkpoints.length === 1) checkpoints[0].connect(0, loader, "model");
  app.canvas.setDirty(true, true);
  return name;
}

const CHECKPOINTS = ["CheckpointLoaderSimple", "UNETLoader", "DPDMDDemoCheckpoint"];

/** The name in the host's list whose folders and file end the path; the longest, "" for none. */
export function listedName(names, path) {
  const plain = (text) => `/${String(text).replaceAll("\\", "/")}`;
  const fitting = names.filter((name) => plain(path).endsWith(plain(name)));
  return fitting.sort((one, other) => other.length - one.length)[0] ?? "";
}

/** The name of the example that distils at once, without a download; null where the host lists none. */
export async function findExample(api) {
  const response = await api.fetchApi("/workflow_templates");
  const names = response.ok ? (await response.json())[decodeURIComponent(FOLDER)] : null;
  return names?.find((name) => /demo/i.test(name)) ?? null;
}

/** Opens an example of this pack on the canvas. */
export async function openExample(app, api, name) {
  const path = `/workflow_templates/${FOLDER}/${encodeURIComponent(name)}.json`;
  const response = await fetch(api.apiURL(path));
  const { ok, status } = response;
  if (!ok) throw new Error(t("The example {name} is not there (status {status}).", { name, status }));
  await app.loadGraphData(await response.json(), true, true, name);
  setTimeout(() => showAll(app), SETTLED); // the host shows it beneath its panels, a frame later
}
