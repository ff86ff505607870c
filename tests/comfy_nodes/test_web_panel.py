"""What ComfyUI's pages load from us: modules, help pages, translations, all against the nodes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
from dpdmd_studio.app.jobs.job import KINDS, State
from dpdmd_studio.app.runs.curves import CURVES
from dpdmd_studio.comfy_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

ROOT = Path(__file__).resolve().parents[2]
WEB, LOCALES = ROOT / "web", ROOT / "locales"
MODULES = sorted(WEB.rglob("*.js"))
ENTRY = WEB / "dpdmd.js"
LANGUAGES = ("en", "zh", "ja", "ko")
IMPORT = re.compile(r"""(?:from|import)\s*\(?\s*["']([^"']+)["']""")
ADDRESS = re.compile(r"(?:https?:)?//[\w-]+\.[\w.-]+")
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
MARKUP = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
# The host's pages compile translations; these signs mean something there.
AFTER = "control_after_generate"  # a control that the host adds to seeds
COMPILED = re.compile(r"[{}@|]")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
SAID = re.compile(rf"\b(?:t|later)\(\s*({STRING.pattern}(?:\s*\+\s*{STRING.pattern})*)")
HOLE = re.compile(r"\{\w+\}")

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


def texts() -> list[Path]:
    return [path for path in WEB.rglob("*") if path.suffix in (".js", ".css", ".md")]


def run_module(code: str) -> Any:
    """What a module prints as JSON; paths in it are relative to web/."""
    command = ["node", "--input-type=module", "-e", code]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_loaded_from_elsewhere():
    found = [
        (path.name, address)
        for path in texts()
        for address in ADDRESS.findall(path.read_text("utf-8").replace(SVG_NAMESPACE, ""))
    ]
    assert found == []


def test_every_import_is_a_file_of_ours_and_the_host_is_met_in_one_place():
    for path in MODULES:
        for name in IMPORT.findall(path.read_text("utf-8")):
            if name.startswith("../../scripts/"):
                assert path == ENTRY, f"{path.name} imports the host"
            else:
                assert (path.parent / name).resolve() in MODULES, f"{path.name} imports {name}"


def test_texts_never_become_markup():
    found = [(p.name, word) for p in MODULES for word in MARKUP if word in p.read_text("utf-8")]
    assert found == []


@needs_node
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_parse(path: Path):
    command = ["node", "--input-type=module", "--check"]
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@needs_node
def test_helpers_do_nothing_when_the_host_imports_them_by_themselves():
    names = [f"./{path.relative_to(WEB).as_posix()}" for path in MODULES if path != ENTRY]
    before = "const before = Object.keys(globalThis).length;"
    load = f"for (const name of {json.dumps(names)}) await import(name);"
    assert run_module(f"{before}{load}console.log(Object.keys(globalThis).length - before)") == 0


@needs_node
def test_every_state_and_kind_has_words():
    states = json.dumps(get_args(State))
    code = (
        'import { stateOf, kindOf } from "./panel/words.js";'
        f"const states = {states}.filter((name) => stateOf(name).label === name);"
        f"const kinds = {json.dumps(KINDS)}.filter((name) => kindOf(name) === name);"
        "console.log(JSON.stringify([states, kinds]))"
    )
    assert run_module(code) == [[], []]


@needs_node
def test_times_and_numbers_read_as_in_the_pages():
    from dpdmd_studio.app.gui.widgets import html

    seconds = [0.42, 9.96, 42.3, 89.6, 91, 5399, 5401, 12000, 172800, 400000]
    code = (
        'import { duration, howFar, number } from "./panel/words.js";'
        'const job = {kind: "distill", state: "running", step: 1054, steps: 2000,'
        " seconds_per_step: 2.9, seconds_left: 420};"
        f"console.log(JSON.stringify([{json.dumps(seconds)}.map(duration), howFar(job),"
        "[0, 0.012345, 12.345, 1.23e-5, -123456, null].map(number)]))"
    )
    durations, far, numbers = run_module(code)
    assert durations == [html.duration(value) for value in seconds]
    assert far == "1,054 of 2,000 updates · 2.9 s each · 7 min left"
    assert numbers == ["0", "0.0123", "12.3", "1.2e-5", "-1.2e5", "\u2013"]


def said_texts() -> set[str]:
    """Every text to be said in the page's language: what a module marks, and names of curves."""
    found = {curve.title for curve in CURVES}
    for path in MODULES:
        for parts in SAID.findall(path.read_text("utf-8")):
            found.add("".join(json.loads(part) for part in STRING.findall(parts)))
    return found


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_the_panel_says_all_in_every_language(language):
    said = json.loads((WEB / "texts" / f"{language}.json").read_text("utf-8"))
    assert set(said) == said_texts()
    for english, words in said.items():
        assert words.strip() and sorted(HOLE.findall(words)) == sorted(HOLE.findall(english)), words


@needs_node
def test_a_text_is_said_in_the_language_of_the_page_or_in_english():
    code = """
import { speak, t } from "./panel/language.js";
import { howFar, stateOf } from "./panel/words.js";
import { readFile } from "node:fs/promises";
const asked = [];
const get = async (address) => {
  asked.push(address.pathname.split("/").pop());
  const text = await readFile(address, "utf8").catch(() => null);
  return { ok: text !== null, json: async () => JSON.parse(text) };
};
const job = { kind: "distill", state: "running", step: 3, steps: 8 };
const found = [];
for (const language of ["zh", "zh-TW", "../x", undefined, "en"]) {
  await speak(language, get);
  const student = t("Student, update {step}", { step: 4 });
  found.push([stateOf("failed").label, howFar(job), t("constructor"), student]);
}
await speak("ja", () => { throw new TypeError("away"); });
console.log(JSON.stringify([asked, found, t("Runs")]));
"""
    asked, found, away = run_module(code)
    assert asked == ["zh.json", "zh-TW.json"] and away == "Runs"
    assert found[0] == ["失败", "3/8 次更新", "constructor", "学生\uff0c第 4 次更新"]
    english = ["Failed", "3 of 8 updates", "constructor", "Student, update 4"]
    assert found[1:] == [english] * 4


@needs_node
def test_the_client_tells_refused_from_away():
    code = """
import { Away, Client, Refused } from "./panel/client.js";
const sent = [];
const answers = [
  new Response('{"jobs": []}'),
  new Response('{"error": "say more"}', { status: 400 }),
  new Response("<html>", { status: 404 }),
  new Response("", { status: 502 }),
  new TypeError("failed to fetch"),
];
const send = async (path, options) => {
  sent.push([path, options.method ?? "GET", options.body ?? null]);
  const answer = answers.shift();
  if (answer instanceof Error) throw answer;
  return answer;
};
const client = new Client(send, (path) => `/api${path}`);
const got = [];
const ask = async (promise) => {
  try { got.push(await promise); } catch (error) {
    const kind = error instanceof Away ? "away" : error instanceof Refused ? "refused" : "bug";
    got.push([kind, error.status ?? 0, error.message.slice(0, 8)]);
  }
};
await ask(client.state());
await ask(client.act("a/../b", "rename", { title: "x" }));
await ask(client.state());
await ask(client.state());
await ask(client.run("r"));
got.push(client.image("a b", "step-1.png", 7));
console.log(JSON.stringify([sent, got]));
"""
    sent, got = run_module(code)
    assert sent[0] == ["/dpdmd/v1/state", "GET", None]
    assert sent[1] == ["/dpdmd/v1/runs/a%2F..%2Fb/rename", "POST", '{"title":"x"}']
    assert got == [
        {"jobs": []},
        ["refused", 400, "say more"],
        ["refused", 404, "This ser"],
        ["away", 0, "status 5"],
        ["away", 0, "failed t"],
        "/api/dpdmd/v1/runs/a%20b/previews/step-1.png?v=7",
    ]


def inputs_of(kind: type[Any]) -> dict[str, dict[str, Any]]:
    """Name -> options of a node's inputs that are shown on it."""
    groups = kind.INPUT_TYPES()
    listed = {**groups.get("required", {}), **groups.get("optional", {})}
    return {name: dict(spec[1]) if len(spec) > 1 else {} for name, spec in listed.items()}


def outputs_of(kind: type[Any]) -> list[dict[str, str]]:
    """Name and tooltip of a node's outputs."""
    tooltips = kind.OUTPUT_TOOLTIPS
    names = getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES)
    return [{"name": n, "tooltip": t} for n, t in zip(names, tooltips, strict=True)]


def definitions(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


@needs_node
def test_the_host_s_name_of_a_lora_is_found_by_its_path():
    code = """
    import { listedName } from "./canvas.js";
    const names = ["few.safetensors", "mine\\\\few.safetensors", "ew.safetensors"];
    const far = "C:\\\\loras\\\\mine\\\\few.safetensors";
    const paths = ["/x/loras/few.safetensors", far, "/x/none.safetensors"];
    console.log(JSON.stringify(paths.map((path) => listedName(names, path))));
    """
    assert run_module(code) == ["few.safetensors", "mine\\few.safetensors", ""]


@needs_node
def test_nodes_and_examples_are_put_where_no_panel_lies():
    code = """
    import { addNode, openExample } from "./canvas.js";
    const rect = (left, top, width, height) => ({ left, top, width, height });
    const free = { getBoundingClientRect: () => rect(400, 100, 800, 600) };
    const found = { ".graph-canvas-panel": free };
    globalThis.document = { querySelector: (name) => found[name] ?? null };
    globalThis.window = { LiteGraph: { createNode: () => ({ pos: [0, 0], size: [200, 100] }) } };
    const ds = { offset: [0, 0], scale: 0.5 };
    const canvas = { getBoundingClientRect: () => rect(0, 0, 1280, 900) };
    const nodes = [{ pos: [60, 160], size: [200, 300] }, { pos: [3000, 200], size: [140, 900] }];
    const app = {
      canvas: { ds, canvas, setDirty() {} },
      graph: { nodes, groups: [], add() {} },
      loadGraphData() {},
    };
    const node = addNode(app, "any");
    globalThis.fetch = async () => ({ ok: true, json: async () => ({}) });
    await openExample(app, { apiURL: (path) => path }, "demo");
    await new Promise((done) => setTimeout(done, 400));
    const seen = (at, side) => (at + ds.offset[side]) * ds.scale;
    const sides = [[0, 3140, 0], [100, 1160, 1]]; // with the margin of 60
    const shown = sides.map(([from, to, side]) => [seen(from, side), seen(to, side)]);
    console.log(JSON.stringify([node.pos, shown]));
    """
    at, (across, down) = run_module(code)
    assert at == [2 * 800 - 100, 2 * 400 - 50], "its middle is the middle of what is free"
    assert 400 <= across[0] < across[1] <= 1200 and 100 <= down[0] < down[1] <= 700
    assert across[1] - across[0] == pytest.approx(800, abs=60), "it fills what is free"


@needs_node
def test_auto_is_shown_for_0_of_the_numbers_that_have_it_alone():
    code = """
    import { addAuto } from "./auto_numbers.js";
    class Widget {
      constructor(name, value) { Object.assign(this, { name, value }); }
      get _displayValue() { return this.value.toFixed(5); }
    }
    class Node { onNodeCreated() { this.widgets = [new Widget("lr", 0), new Widget("seed", 0)]; } }
    const lr = ["FLOAT", { dpdmd_auto: true }];
    addAuto(Node, { input: { required: { lr, seed: ["INT", {}] } } });
    const node = new Node();
    node.onNodeCreated();
    const shown = () => node.widgets.map((widget) => widget._displayValue);
    const first = shown();
    node.widgets[0].value = 0.5;
    console.log(JSON.stringify([first, shown()]));
    """
    assert run_module(code) == [["auto", "0.00000"], ["0.50000", "0.00000"]]


@needs_node
def test_an_estimate_is_asked_for_when_what_decides_it_has_changed_and_not_on_wires():
    code = """
    import { addEstimate } from "./estimate_note.js";
    import { Away } from "./panel/client.js";
    const boxes = [];
    const element = () => ({ style: {}, dataset: {}, setAttribute() {}, addEventListener() {} });
    globalThis.document = { createElement: element };
    const widget = (name, value) => ({ name, value, callback() { this.called = true; } });
    class Node {
      constructor() {
        this.size = [300, 100];
        const steps = { name: "steps", widget: { name: "steps" }, link: null };
        this.inputs = [{ name: "model", link: null }, steps];
      }
      onNodeCreated() {
        this.widgets = ["checkpoint", "steps", "prompts"].map((name) => widget(name, name));
      }
      addDOMWidget(name, type, element) {
        this.widgets.push({ name, element });
        return this.widgets.at(-1);
      }
      computeSize() { return this.size; }
    }
    const asked = [];
    let answer = async (values) => `takes ${values.steps}`;
    const ask = (values) => { asked.push(values); return answer(values); };
    const input = { required: { checkpoint: [], steps: [], prompts: [] }, optional: { model: [] } };
    addEstimate(Node, { name: "DPDMDDistill", input }, ask, 1);
    const settle = () => new Promise((done) => setTimeout(done, 20));
    const node = new Node();
    const said = () => {
      const box = node.widgets.find((one) => one.name === "dpdmd_estimate");
      return [box?.element.textContent ?? null, box?.element.style.display ?? null];
    };
    const set = async (name, value) => {
      const one = node.widgets.find((each) => each.name === name);
      one.value = value;
      one.callback(value);
      await settle();
    };
    node.onNodeCreated();
    node.onConfigure?.();
    await settle();
    const told = [said()];
    await set("prompts", "a cat");
    await set("steps", 7);
    told.push(said());
    node.inputs[1].link = 3;
    node.inputs[0].link = 4;
    node.onConnectionsChange();
    await settle();
    told.push(said());
    node.inputs[0].link = node.inputs[1].link = null;
    answer = async () => { throw new Error("No such file."); };
    node.onConnectionsChange();
    await settle();
    told.push(said());
    answer = async () => { throw new Away(); };
    node.onConnectionsChange();
    await settle();
    told.push(said());
    const slow = [];
    answer = (values) => new Promise((done) => slow.push(() => done(`takes ${values.steps}`)));
    await set("steps", 8);
    await set("steps", 9);
    slow[1]();
    await settle();
    slow[0](); // the older one comes last
    await settle();
    told.push(said());
    answer = async (values) => `takes ${values.checkpoint}`;
    const loader = { type: "CheckpointLoaderSimple", widgets: [widget("ckpt_name", "theirs")] };
    node.inputs[0].link = 5;
    node.getInputNode = () => loader;
    node.onConnectionsChange();
    await settle();
    told.push(said());
    loader.widgets[0].value = "another";
    loader.widgets[0].callback();
    await settle();
    told.push(said());
    node.onExecuted();
    await settle();
    told.push(said());
    loader.type = "UNETLoader";
    loader.widgets.push(widget("unet_name", "bare"));
    node.onConnectionsChange();
    await settle();
    told.push(said());
    loader.type = "LoraLoader";
    node.onConnectionsChange();
    await settle();
    told.push(said());
    const chained = node.widgets[0].called ?? node.widgets[1].called;
    const other = class { };
    addEstimate(other, { name: "DPDMDRuns" }, ask, 1);
    const touched = "onNodeCreated" in other.prototype;
    console.log(JSON.stringify({ asked, told, chained, touched }));
    """
    found = run_module(code)
    checkpoints = ["checkpoint"] * 7 + ["theirs", "another", "another"]
    checkpoints += ["diffusion_models/bare"]
    assert [one["checkpoint"] for one in found["asked"]] == checkpoints
    assert [one["steps"] for one in found["asked"]] == ["steps", "steps", 7, 7, 7, 8, 9, 9, 9, 9, 9]
    assert all(set(one) == {"checkpoint", "steps", "prompts"} for one in found["asked"])
    assert found["told"] == [
        ["takes steps", ""],
        ["takes 7", ""],
        ["Memory and time are not known before it runs: model, steps come by wires.", ""],
        ["No estimate. No such file.", ""],
        ["", "none"],
        ["takes 9", ""],
        ["takes theirs", ""],
        ["takes another", ""],
        ["takes another", ""],
        ["takes diffusion_models/bare", ""],
        ["Memory and time are not known before it runs: model comes by a wire.", ""],
    ]
    assert found["chained"] is True and found["touched"] is False


@needs_node
def test_ends_of_runs_are_told_once_and_not_those_from_before():
    code = """
    import { Watcher } from "./watcher.js";
    const told = [], done = [];
    const states = [
      ["running", "failed", "finished"], ["running", "failed", "finished"],
      ["finished", "failed", "finished", "failed"], ["finished", "failed", "finished", "failed"],
    ];
    const kind = (id) => (id ? "package" : "distill");
    const job = (state, id) => ({ id, state, kind: kind(id), title: `run ${id}`, message: "m" });
    const client = { state: async () => ({ jobs: states.shift().map(job) }) };
    const toast = (one) => told.push([one.severity, one.summary, one.detail]);
    const host = { toast, finished: (one) => done.push(one.id) };
    const watcher = new Watcher(client, host);
    const waits = [];
    while (states.length) { await watcher.look(); waits.push(Boolean(watcher.timer)); }
    clearTimeout(watcher.timer);
    client.state = async () => { throw new Error("away"); };
    await watcher.look();
    console.log(JSON.stringify({ told, done, waits, away: Boolean(watcher.timer) }));
    """
    assert run_module(code) == {
        "told": [["success", "DP-DMD: run 0 finished", ""], ["error", "DP-DMD: run 3 failed", "m"]],
        "done": [0],
        "waits": [True, True, False, False],
        "away": False,
    }


NODE = """
const make = (type) => {
  const element = { style: {}, dataset: {} };
  const widgets = [{ name: "dpdmd_note", element }];
  const sizes = { size: [200, 100], computeSize: () => [200, 120], setSize() {} };
  return { type, widgets, element, ...sizes };
};
"""
"""A node with a box for notes, as the host has them."""


@needs_node
def test_notes_and_errors_find_their_node_inside_subgraphs():
    code = """
    import { restoreNotes, showError } from "./node_notes.js";
    const graph = (nodes) => ({ getNodeById: (id) => nodes[id] ?? null });
    const inner = make("DPDMDKSampler"), outer = make("DPDMDLoadLora");
    const other = make("KSampler"), subgraph = graph({ 5: inner });
    const root = graph({ 3: outer, 7: other, 12: { type: "x", subgraph } });
    const said = (text) => ({ text: [text] });
    restoreNotes(root, { 3: said("kept"), "12:5": said("inside"), 99: said("gone") });
    const text = (node) => node.element.textContent ?? null;
    const first = [text(outer), text(inner), inner.element.dataset.kind];
    const error = { exception_message: "why", node_id: "12:5", node_type: "DPDMDKSampler" };
    showError(root, error);
    showError(root, { ...error, node_id: "7", node_type: "KSampler" });
    showError(root, { ...error, node_id: "12:9" });
    const second = [text(inner), inner.element.dataset.kind, text(other)];
    console.log(JSON.stringify([first, second]));
    """
    assert run_module(NODE + code) == [["kept", "inside", "note"], ["why", "error", None]]


@needs_node
def test_what_is_refused_before_it_is_queued_stands_on_the_node_until_it_is_mended():
    code = """
    import { showRefusals } from "./node_notes.js";
    const distil = make("DPDMDDistill"), other = make("KSampler");
    const root = { getNodeById: (id) => ({ 3: distil, 7: other })[id] ?? null };
    const text = (node) => node.element.textContent ?? null;
    const why = "No prompts: write some - or name a file.";
    const of = (name) => ({ details: `${name} - ${why}`, extra_info: { input_name: name } });
    const raised = { details: "One - two", extra_info: { input_name: "source" } };
    const found = [of("prompts"), of("steps"), raised, { details: "", message: "missing" }];
    const errors = { 3: { class_type: "DPDMDDistill", errors: found } };
    showRefusals(root, { ...errors, 7: { class_type: "KSampler", errors: found }, 9: errors[3] });
    const first = [text(distil), distil.element.dataset.kind, text(other)];
    showRefusals(root, null);
    console.log(JSON.stringify([first, text(distil), distil.element.style.display]));
    """
    first = ["No prompts: write some - or name a file.\nOne - two\nmissing", "error", None]
    assert run_module(NODE + code) == [first, "", "none"]


def test_every_node_has_one_help_page():
    assert NODE_CLASS_MAPPINGS
    assert {path.stem for path in (WEB / "docs").glob("*.md")} == set(NODE_CLASS_MAPPINGS)


def rows_under(heading: str, text: str) -> list[str]:
    """Names in the list under a heading."""
    part = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^- `(\w+)` [A-Z_]+ ·", part, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
def test_a_help_page_names_every_input_and_output_in_order(name: str):
    text = (WEB / "docs" / f"{name}.md").read_text("utf-8")
    kind = NODE_CLASS_MAPPINGS[name]
    assert rows_under("Inputs", text) == list(inputs_of(kind))
    assert rows_under("Outputs", text) == [output["name"] for output in outputs_of(kind)]
    assert "\n## Example\n" in text


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
def test_the_english_texts_are_those_of_the_node(name: str):
    kind, text = NODE_CLASS_MAPPINGS[name], definitions("en")[name]
    assert text["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[name]
    assert text["description"] == kind.DESCRIPTION
    tooltips = {input: options["tooltip"] for input, options in inputs_of(kind).items()}
    entries = {input: entry for input, entry in text["inputs"].items() if input != AFTER}
    assert {input: entry["tooltip"] for input, entry in entries.items()} == tooltips
    seeds = [name for name, each in inputs_of(kind).items() if each.get(AFTER)]
    assert (AFTER in text["inputs"]) == bool(seeds)
    assert list(text["outputs"].values()) == outputs_of(kind)


def shape(value: Any) -> Any:
    """The keys of nested tables; True in place of a text that says something."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return isinstance(value, str) and bool(value.strip())


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_complete_and_of_this_version(language: str):
    english = definitions("en")
    assert set(english) == set(NODE_CLASS_MAPPINGS)
    assert shape(definitions(language)) == shape(english)


def all_texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in all_texts(inner)]
    return [value]


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_hold_nothing_that_the_pages_would_compile(language: str):
    found = [text for text in all_texts(definitions(language)) if COMPILED.search(text)]
    assert found == []


@pytest.mark.parametrize(
    ("language", "script"), [("zh", "一-鿿"), ("ja", "ぁ-ヿ"), ("ko", "가-힣")]
)
def test_translations_are_in_their_language(language: str, script: str):
    english, letters = definitions("en"), re.compile(f"[{script}]")
    for name, entry in definitions(language).items():
        tooltips = [each["tooltip"] for name, each in entry["inputs"].items() if name != AFTER]
        for text in [entry["description"], *tooltips]:
            assert letters.search(text), f"{language}: {name}: {text}"
        assert shape(entry) == shape(english[name])


@pytest.mark.parametrize("language", LANGUAGES)
def test_our_wire_type_has_a_name(language: str):
    words = json.loads((LOCALES / language / "main.json").read_text("utf-8"))
    assert words["dataTypes"]["DPDMD_RECIPE"]


def test_the_registry_gets_what_the_pages_load():
    lines = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    anywhere = {line.rstrip("/") for line in lines if line and line[0] not in "#/"}
    served = [path for folder in (WEB, LOCALES) for path in (folder, *folder.rglob("*"))]
    assert [path for path in served if path.name in anywhere] == []
