/** What the panel's buttons do on the canvas. */

const FOLDER = new URL(".", import.meta.url).pathname.split("/").filter(Boolean).pop();

/** Puts a node into the middle of what is seen of the graph, and selects it. */
export function addNode(app, type) {
  const node = window.LiteGraph?.createNode(type);
  if (!node) throw new Error(`This ComfyUI does not know the node ${type}.`);
  const [x, y, width, height] = app.canvas.ds.visible_area ?? [0, 0, 800, 600];
  app.graph.add(node);
  node.pos = [x + (width - node.size[0]) / 2, y + (height - node.size[1]) / 2];
  app.canvas.selectNode?.(node, false);
  app.canvas.setDirty(true, true);
  return node;
}

/** The name of the example that distils a checkpoint; null where the host lists none. */
export async function findExample(api) {
  const response = await api.fetchApi("/workflow_templates");
  const names = response.ok ? (await response.json())[decodeURIComponent(FOLDER)] : null;
  return names?.find((name) => /distil/i.test(name)) ?? null;
}

/** Opens an example of this pack on the canvas. */
export async function openExample(app, api, name) {
  const path = `/workflow_templates/${FOLDER}/${encodeURIComponent(name)}.json`;
  const response = await fetch(api.apiURL(path));
  if (!response.ok) throw new Error(`The example ${name} is not there (status ${response.status}).`);
  await app.loadGraphData(await response.json(), true, true, name);
}
