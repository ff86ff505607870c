/** What the node pack adds to ComfyUI's pages: the DP-DMD panel, and notes on its nodes. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addNode, findExample, openExample } from "./canvas.js";
import { addNotes, restoreNotes } from "./node_notes.js";
import { Client } from "./panel/client.js";
import { Panel } from "./panel/panel.js";

const NAME = "DPDMD.Studio";
const TITLE = "DP-DMD";
const TOOLTIP = "DP-DMD: training runs";
const OPEN = "DPDMD.OpenRuns";

let panel = null;
let floating = null;

function stylesheet() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("panel/panel.css", import.meta.url).href;
  document.head.append(link);
}

/** The one panel of the page. */
async function thePanel() {
  if (panel) return panel;
  const example = await findExample(api).catch(() => null);
  if (panel) return panel;
  const client = new Client(
    (path, options) => api.fetchApi(path, options),
    (path) => api.apiURL(path),
  );
  panel = new Panel(client, {
    addNode: () => addNode(app, "DPDMDDistill"),
    openExample: example ? () => openExample(app, api, example) : undefined,
    finished: () => app.refreshComboInNodes?.(), // the new LoRA is in the lists at once
  });
  return panel;
}

/** The panel in a window of its own, for pages without a sidebar. */
async function openWindow() {
  if (!floating) {
    floating = document.createElement("dialog");
    floating.className = "dpdmd-window";
    floating.setAttribute("aria-label", TOOLTIP);
    floating.addEventListener("close", () => panel?.unmount());
    floating.addEventListener("keydown", (event) => event.stopPropagation());
    floating.addEventListener("click", (event) => {
      if (event.target === floating) floating.close();
    });
    const close = document.createElement("button");
    close.className = "dpdmd-window-close";
    close.textContent = "Close";
    close.onclick = () => floating.close();
    floating.append(document.createElement("div"), close);
    document.body.append(floating);
  }
  if (!floating.open) floating.showModal();
  (await thePanel()).mount(floating.firstElementChild);
}

function register() {
  if (!app.extensionManager?.registerSidebarTab) {
    const button = document.createElement("button");
    button.textContent = TITLE;
    button.onclick = openWindow;
    app.ui?.menuContainer?.append(button);
    return;
  }
  app.extensionManager.registerSidebarTab({
    id: "dpdmd",
    icon: "pi pi-bolt",
    title: TITLE,
    tooltip: TOOLTIP,
    type: "custom",
    render: async (element) => {
      element.style.height = "100%";
      (await thePanel()).mount(element);
    },
    destroy: () => panel?.unmount(),
  });
}

const extension = {
  name: NAME,
  commands: [{ id: OPEN, label: "Open the DP-DMD runs in a window", icon: "pi pi-bolt", function: openWindow }],
  setup() {
    stylesheet();
    register();
  },
  beforeRegisterNodeDef: addNotes,
  onNodeOutputsUpdated: (outputs) => restoreNotes(app.rootGraph ?? app.graph, outputs),
};

// Two copies of the pack, or one that is served under two names, must not give two panels.
if (!window.dpdmdStudio) {
  window.dpdmdStudio = true;
  app.registerExtension(extension);
}
