"""The texts of a package from its facts: every family, every host, hostile names."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import re

import pytest
import share_readers as readers
import torch
import yaml
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.share.describe import diffusers_program, model_card
from dpdmd_studio.app.share.labels import base_model_choices, base_model_note, chosen_label
from dpdmd_studio.app.share.markdown import markdown_templates
from dpdmd_studio.app.share.measurements import Measurements
from dpdmd_studio.app.share.names import safe_name, words
from dpdmd_studio.app.share.source import PackageRequest, find_source, image_pairs
from dpdmd_studio.core.errors import LoraError, RunError, SettingsError
from dpdmd_studio.core.families import family as family_of
from dpdmd_studio.core.lora.header import copy_with_metadata
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import MergedLora
from dpdmd_studio.trainer.commands.markdown import markdown_to_html
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from safetensors.torch import save, save_file
from share_packages import HOSTILE, facts, recipe, student, texts_of


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_the_diffusers_program_walks_the_recipe_s_levels(family):
    given = facts(family, file_format="peft")
    source = diffusers_program(given)
    tree = ast.parse(source)
    calls = {ast.unparse(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    values = {k.arg: k.value for k in calls["pipe"].keywords if k.arg != "generator"}
    options = {name: ast.literal_eval(value) for name, value in values.items()}
    (scheduler,) = [call for name, call in calls.items() if name.endswith("from_config")]
    settings = {k.arg: ast.literal_eval(k.value) for k in scheduler.keywords}
    if family == "sd3":
        made = FlowMatchEulerDiscreteScheduler(**settings)
        made.set_timesteps(sigmas=options["sigmas"])
    else:
        ldm = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        made = EulerDiscreteScheduler(**ldm, **settings)
        made.set_timesteps(timesteps=options["timesteps"])
    levels = torch.tensor(given.recipe.sigmas)
    torch.testing.assert_close(made.sigmas.float(), levels, rtol=1e-4, atol=1e-5)
    assert options["guidance_scale"] == 1.0
    assert options.get("clip_skip", 0) == (1 if family == "sd1" else 0)  # it counts from 0


def a_flow_of_sdxl():
    return facts("sdxl", recipe=default_recipe("sdxl", "flow", shift=2.5))


def test_the_diffusers_program_of_a_flow_of_sdxl_takes_euler_s_steps():
    source = diffusers_program(a_flow_of_sdxl())
    calls = {ast.unparse(n.func): n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)}
    (scheduler,) = [call for name, call in calls.items() if name.endswith("from_config")]
    settings = {k.arg: ast.literal_eval(k.value) for k in scheduler.keywords}
    ldm = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    made = DPMSolverMultistepScheduler(**ldm, **settings)
    (steps,) = [k.value for k in calls["pipe"].keywords if k.arg == "num_inference_steps"]
    made.set_timesteps(ast.literal_eval(steps))
    levels = a_flow_of_sdxl().recipe.sigmas
    torch.testing.assert_close(made.sigmas, torch.tensor(levels), rtol=0, atol=2e-3)
    x = expected = torch.full((1, 1, 1, 1), 1.0) * made.init_noise_sigma
    pairs = itertools.pairwise(made.sigmas)
    for timestep, (here, there) in zip(made.timesteps, pairs, strict=True):
        velocity = 0.5 + 0.3 * float(here)
        x = made.step(velocity + 0 * x, timestep, made.scale_model_input(x, timestep)).prev_sample
        expected = expected + float(there - here) * velocity
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_what_a_flow_of_sdxl_needs_is_said_everywhere():
    texts = texts_of(a_flow_of_sdxl())
    for name in ("few.json", "README.md", "description.html"):
        assert "ModelSamplingSD3" in texts[name], name
        assert "shift 2.5" in texts[name], name
    graph = json.loads(texts["workflow.json"])
    (node,) = [node for node in graph["nodes"] if node["type"] == "ModelSamplingSD3"]
    assert node["widgets_values"] == [2.5]


def test_sd3_in_kohya_s_form_promises_nothing_for_diffusers():
    card = model_card(facts("sd3"))
    front = yaml.safe_load(card.split("---\n")[1])
    assert "library_name" not in front and "```python" not in card
    assert front["base_model"] == "stabilityai/stable-diffusion-3.5-medium"
    assert front["license_name"] == "stabilityai-ai-community"
    assert "--format peft" in card
    notes = texts_of(facts("sd3"))["CIVITAI.txt"]
    assert "Hugging Face is the realistic place" in notes


def test_what_a_recipe_adds_is_said_everywhere():
    merged = (
        MergedLora(name="in.safetensors", strength=0.5, included=True),
        MergedLora(name="beside.safetensors", strength=0.8),
    )
    given = facts("sdxl", recipe=recipe("sdxl", merged_loras=merged, teacher_sha256="ab" * 32))
    checkpoint = dataclasses.replace(given.checkpoint, sha256="cd" * 32)
    texts = texts_of(dataclasses.replace(given, checkpoint=checkpoint))
    for name in ("description.html", "few.json", "README.md", "workflow.json"):
        text = texts[name].replace("\\", "")
        assert "contains in.safetensors at 0.5; do not add" in text
        assert "beside.safetensors at 0.8 merged when it was distilled" in text
        assert "not the file that was distilled" in text
    assert "Open RAIL++-M" in texts["description.html"]


def test_hostile_names_stay_text_in_every_file():
    given = facts("sd1", title=HOSTILE, author=HOSTILE, license=HOSTILE, trigger_words=(HOSTILE,))
    merged = MergedLora(name=HOSTILE, strength=1.0)
    given = dataclasses.replace(
        given,
        recipe=recipe("sd1", teacher_name=HOSTILE, merged_loras=(merged,), generator=HOSTILE),
        metadata={"ss_steps": HOSTILE, "ss_network_dim": "\n\n# x\n```\n" + HOSTILE},
    )
    texts = texts_of(given)
    tags, text = readers.read_html(texts["description.html"])
    assert not [tag for tag, _ in tags if tag in ("script", "b", "img")] and HOSTILE in text
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(texts["description.md"])
    tags, text = readers.read_html(html)
    assert not [tag for tag, _ in tags if tag in ("script", "b", "img")]
    assert [a["href"] for tag, a in tags if tag == "a"] == ["https://arxiv.org/abs/2602.03139"]
    assert [tag for tag, _ in tags].count("h1") == 1 and HOSTILE in text
    front = yaml.safe_load(texts["README.md"].split("\n---\n")[0].removeprefix("---\n"))
    assert front["instance_prompt"] == HOSTILE
    assert re.fullmatch(r"[a-z0-9._-]+", front["license_name"])
    for name in ("few.json", "few.civitai.info", "workflow.json"):
        json.loads(texts[name])


LINES = """\
{{ paragraphs[0]|line }}

{{ paragraphs[1]|line }}

- {{ "# e"|line }}
- {{ "a`b"|code }}

| {{ "+" }} | |
| --- | --- |
{% for cells in rows %}
|{% for cell in cells %} {{ cell }} |{% endfor +%}
{% endfor %}
"""


def test_lines_and_tables_survive_any_text():
    rows = (("1. a", "- b"), ("|x|", "``` c"), ("a\nb", "# d"))
    template = markdown_templates().from_string(LINES)
    markdown = template.render(paragraphs=("1. not a list", "- nor this"), rows=rows)
    for html in (MarkdownIt("commonmark").enable("table").render(markdown),
                 markdown_to_html(markdown)):  # fmt: skip
        tags, text = readers.read_html(html)
        kinds = [tag for tag, _ in tags]
        assert [kinds.count(k) for k in ("ol", "ul", "li", "h1", "pre", "tr", "td")] == [
            *(0, 1, 2, 0, 0, 4, 6),
        ]
        for shown in ("1. not a list", "- nor this", "# e", "a`b", "|x|", "``` c", "a b", "- b"):
            assert shown in text
        assert text.count("|x|") == 1


def test_what_was_measured_stays_text_in_its_table():
    rows = (("1. a", "- b", "|x|"), ("``` c", "a\nb", HOSTILE))
    notes = ("1. one", "- two", "# three", "+ four", HOSTILE)
    measured = Measurements(head=("", "# h", HOSTILE), rows=rows, notes=notes, prompts=3, seeds=4)
    plain = readers.read_html(texts_of(facts("sd1"))["description.html"])[0]
    tags, text = readers.read_html(texts_of(facts("sd1", measured=measured))["description.html"])
    kinds = ("h1", "h2", "table", "tr", "th", "td", "ul", "ol", "li", "pre", "a", "b")
    more = {
        kind: [tag for tag, _ in tags].count(kind) - [tag for tag, _ in plain].count(kind)
        for kind in kinds
    }
    assert more == dict.fromkeys(("h1", "ol", "pre", "a", "b"), 0) | {
        "h2": 1, "table": 1, "tr": 3, "th": 3, "td": 6, "ul": 1, "li": len(notes),
    }  # fmt: skip
    for shown in (*(cell.replace("\n", " ") for cells in rows for cell in cells), *notes):
        assert shown in text


def test_a_template_that_lacks_a_value_is_an_error():
    with pytest.raises(UndefinedError, match="nobody"):
        markdown_templates().from_string("{{ nobody }}").render()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My LoRA, v1: é", "My-LoRA-v1-e"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\x\\con", "C-x-con"),
        ("CON.x", "lora-CON.x"),
        ("日本", "lora"),
        ("", "lora"),
        ("...", "lora"),
        ("a" * 300, "a" * 80),
        ("<lora:x:1>", "lora-x-1"),
    ],
)
def test_names_fit_every_file_system_and_site(text, name):
    assert safe_name(text) == name


def test_trigger_words_are_split_and_limited():
    assert words(" a b, c,,a b") == ("a b", "c")
    with pytest.raises(SettingsError, match="too many"):
        words(",".join(map(str, range(51))))


def test_sd35_large_is_told_by_its_own_name():
    base = family_of("sd3").sharing.base_model("SD3.5 large")
    assert base.repository == "stabilityai/stable-diffusion-3.5-large"
    assert base_model_choices("sd3", "SD3.5 large") == ["Other"]


def test_labels_are_those_of_the_upload_form():
    assert base_model_choices("sd1", "SD 1.x")[0] == "SD 1.5"
    assert base_model_choices("sd3", "SD3.5 medium") == ["Other"]
    assert base_model_choices("sdxl", "SDXL")[:4] == ["SDXL 1.0", "Pony", "Illustrious", "NoobAI"]
    assert base_model_choices("sdxl", "SDXL (v-prediction)")[:2] == ["SDXL 1.0", "NoobAI"]
    assert base_model_choices("sd1", "SD 1.x", embedded=True) == ["Other"]
    assert chosen_label("pony", "sdxl", "SDXL") == "Pony"
    with pytest.raises(SettingsError, match="not among those"):
        chosen_label("Pony", "sd1", "SD 1.x")
    assert "cannot be told apart" in base_model_note("sdxl", "SDXL")


@pytest.mark.parametrize(
    ("prompts", "seeds", "count"), [(1, 8, 8), (3, 3, 8), (20, 1, 8), (5, 0, 9)]
)
def test_no_two_images_are_alike(prompts, seeds, count):
    pairs = image_pairs(prompts, range(10, 10 + seeds), count)
    assert len(set(pairs)) == len(pairs) == count
    assert {number for number, _ in pairs} == set(range(min(prompts, count)))


def test_a_copy_with_other_metadata_has_true_hashes(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {f"lora_unet_{n}.lora_up.weight": torch.randn(300, 1000) for n in "ab"}
    save_file(tensors, source, {"ss_note": "é", "x": "1", "sshs_model_hash": "wrong"})
    copy_with_metadata(source, target, {"ss_output_name": "b", "modelspec.author": ""})
    entries, metadata, body = readers.safetensors_parts(target)
    assert body == readers.safetensors_parts(source)[2]
    assert entries == readers.safetensors_parts(source)[0]
    own = {"ss_note": "é", "ss_output_name": "b"}
    only_ss = save(tensors, own)  # sd-scripts: the tensors saved with nothing but ss_*
    assert metadata == {
        **own,
        "x": "1",
        "sshs_model_hash": readers.sha256(body),
        "modelspec.hash_sha256": "0x" + readers.sha256(body),
        "sshs_legacy_hash": readers.sha256(only_ss[0x100000 : 0x100000 + 0x10000])[:8],
    }
    again = tmp_path / "c.safetensors"
    copy_with_metadata(target, again, {"ss_output_name": "b"})
    assert again.read_bytes() == target.read_bytes()


def test_a_hash_of_nothing_is_taken_out(tmp_path):
    """It made sites link every small file to one and the same stranger."""
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a": torch.zeros(8)}, source, {"sshs_legacy_hash": "e3b0c442"})
    metadata = copy_with_metadata(source, target, {})
    assert metadata == readers.safetensors_parts(target)[1]
    assert metadata.keys() == {"sshs_model_hash", "modelspec.hash_sha256"}


@pytest.fixture
def run(files, tmp_path):
    """A run directory as a finished run leaves it, its LoRA somewhere else."""
    lora = student(tmp_path, files["sd1"])
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(files["sd1"])),
        config=DistillConfig(),
        output=str(lora),
        teacher_loras=(TeacherLora(path="style.safetensors", strength=0.8),),
    )
    made = RunDirectory.create(
        tmp_path / "run", request.to_dict(), ["a {b|c}"], evaluation_prompts=["kept"]
    )
    made.write_json("result.json", {"lora": str(lora)})
    return made


def test_a_run_knows_its_checkpoint_prompts_styles_and_report(run, files, tmp_path):
    request = PackageRequest(source=run.path, output=tmp_path / "out")
    found = find_source(request)
    assert (found.lora, found.file_format) == (tmp_path / "few.safetensors", "kohya")
    assert found.model.checkpoint == str(files["sd1"])
    assert (found.prompts, found.notes, found.report) == (("kept",), (), None)
    assert found.with_loras == (("style.safetensors", 0.8),)
    run.report.mkdir()
    (run.report / "report.json").write_text("{}")
    (run.path / "evaluation-prompts.txt").unlink()
    found = find_source(dataclasses.replace(request, with_loras=(("x", 1.0),)))
    assert found.report == run.report / "report.json"
    assert (found.prompts, found.with_loras) == (("a {b|c}",), (("x", 1.0),))
    assert "trained on" in found.notes[0]


def test_a_run_without_a_result_is_refused(run, files, tmp_path):
    request = PackageRequest(source=run.path, output=tmp_path / "out")
    (tmp_path / "few.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(RunError, match="not there any more"):
        find_source(request)
    (run.path / "result.json").unlink()
    with pytest.raises(RunError, match="has not written a LoRA yet"):
        find_source(request)
    moved = dataclasses.replace(request, source=tmp_path / "moved.safetensors")
    with pytest.raises(LoraError, match="Name the checkpoint that it was made for"):
        find_source(dataclasses.replace(moved, files={"checkpoint": str(files["sdxl"])}))
    with pytest.raises(SettingsError, match="need prompts"):
        find_source(dataclasses.replace(moved, files={"checkpoint": str(files["sd1"])}))
