/** What the node pack adds to ComfyUI's pages: the DP-DMD panel, and notes on its nodes. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addAuto } from "./auto_numbers.js";
import { addNode, findExample, openExample, useLora } from "./canvas.js";
import { addEstimate } from "./estimate_note.js";
import { addNotes, restoreNotes, showError, showRefusals } from "./node_notes.js";
import { Client } from "./panel/client.js";
import { speak, t } from "./panel/language.js";
import { Panel } from "./panel/panel.js";
import { Watcher } from "./watcher.js";

const NAME = "DPDMD.Studio";
const TITLE = "DP-DMD";
const OPEN = "DPDMD.OpenRuns";

const client = new Client(
  (path, options) => api.fetchApi(path, options),
  (path) => api.apiURL(path),
);
const watcher = new Watcher(client, {
  toast: (message) => app.extensionManager?.toast?.add?.(message),
  finished: () => app.refreshComboInNodes?.(), // the new LoRA is in the lists at once
});

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
  panel = new Panel(client, {
    addNode: () => addNode(app, "DPDMDDistill"),
    openExample: example ? () => openExample(app, api, example) : undefined,
    use: async (path) => {
      await app.refreshComboInNodes?.();
      useLora(app, path);
    },
    busy: () => watcher.wake(),
    finished: () => app.refreshComboInNodes?.(),
  });
  return panel;
}

/** Looks for runs now, and whenever a graph of ours may have begun one; shows errors of our nodes. */
function listen() {
  watcher.look();
  api.addEventListener("executed", () => watcher.wake());
  api.addEventListener("execution_error", ({ detail }) => showError(app.rootGraph ?? app.graph, detail));
  const queue = app.queuePrompt; // the host tells of no refusal
  app.queuePrompt = async function () {
    try {
      return await queue.apply(this, arguments);
    } finally {
      showRefusals(app.rootGraph ?? app.graph, app.lastNodeErrors);
    }
  };
}

/** The panel in a window of its own, for pages without a sidebar. */
async function openWindow() {
  if (!floating) {
    floating = document.createElement("dialog");
    floating.className = "dpdmd-window";
    floating.setAttribute("aria-label", t("DP-DMD: training runs"));
    floating.addEventListener("close", () => panel?.unmount());
    floating.addEventListener("keydown", (event) => event.stopPropagation());
    floating.addEventListener("click", (event) => {
      if (event.target === floating) floating.close();
    });
    const close = document.createElement("button");
    close.className = "dpdmd-window-close";
    close.textContent = t("Close");
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
    tooltip: t("DP-DMD: training runs"),
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
  async setup() {
    await speak(app.extensionManager?.setting?.get?.("Comfy.Locale"));
    stylesheet();
    register();
    listen();
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    addNotes(nodeType, nodeData);
    addAuto(nodeType, nodeData);
    addEstimate(nodeType, nodeData, (values) => client.estimate(values));
  },
  onNodeOutputsUpdated: (outputs) => restoreNotes(app.rootGraph ?? app.graph, outputs),
};

// Two copies of the pack, or one that is served under two names, must not give two panels.
if (!window.dpdmdStudio) {
  window.dpdmdStudio = true;
  app.registerExtension(extension);
}
