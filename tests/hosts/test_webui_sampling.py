"""In real A1111, Forge, reForge, Neo: the sampler, the automatic set-up, the anchored first step.

Needs WEBUI_DIR, FORGE_DIR, REFORGE_DIR or NEO_DIR; see webui_server.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from comfyui_server import command
from PIL import Image
from safetensors.torch import load_file, save_file
from webui_files import UNET, WIDE_UNET, random_lora, small_sd1, wide_sd1
from webui_server import WebUI, as_levels, as_png

SCRIPT = "DP-DMD few-step LoRAs"
FROM_FILE = "what the LoRA says"
LORA, PROMPT = "few", "a red circle <lora:few:1>"
SIDE = 128
LCM_LEVELS = [14.615, 4.261, 1.613, 0.719]
"""At the positions 999, 759, 499 and 259."""
SAME = 1.0
"""Levels of 255: batches of another size are rounded otherwise."""


@pytest.fixture(scope="module", params=["WEBUI", "FORGE", "REFORGE", "NEO"])
def webui(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[WebUI]:
    """A running host with a checkpoint and a LoRA."""
    server = WebUI(request.param, tmp_path_factory.mktemp(request.param.lower()))
    models = server.base / "models"
    if server.kind == "WEBUI":
        small_sd1(models / "Stable-diffusion")
    else:
        wide_sd1(models / "Stable-diffusion")
    unet = UNET if server.kind == "WEBUI" else WIDE_UNET
    few = random_lora(models / "Lora" / f"{LORA}.safetensors", unet)
    save_file(load_file(few), few.with_name("plain.safetensors"))  # it has no recipe
    try:
        server.start()
        yield server
    finally:
        server.stop()


def draw(webui: WebUI, prompt: str = PROMPT, *script: object, **wishes) -> tuple[np.ndarray, str]:
    """A picture; `script` are the accordion's values, without them it is switched off."""
    values = list(script) or [False]
    scripts = {SCRIPT: {"args": values}}
    body = {"width": SIDE, "height": SIDE, "steps": 4, "cfg_scale": 1, **wishes}
    return webui.draw(prompt, alwayson_scripts=scripts, **body)


def auto(*changes: object) -> tuple[object, ...]:
    """The accordion's values: switched on, with some changed from the front."""
    usual = (True, FROM_FILE, "", "off", 0, 0.0)
    return (*changes, *usual[len(changes) :])


def test_entries_are_there_once_and_nothing_complains(webui):
    samplers = [item["name"] for item in webui.get("/sdapi/v1/samplers")]
    schedulers = [item["label"] for item in webui.get("/sdapi/v1/schedulers")]
    assert samplers.count("DP-DMD") == 1 and schedulers.count("DP-DMD") == 1
    scripts = webui.get("/sdapi/v1/scripts")
    for tab in ("txt2img", "img2img"):
        assert scripts[tab].count(SCRIPT.lower()) == 1
    assert "the neighbour has its trainer" in webui.said()
    ours = [line for line in webui.said().splitlines() if re.search("dp.?dmd", line, re.I)]
    assert not [line for line in ours if re.search("error|warn|traceback", line, re.I)]


def test_the_sampler_gives_the_picture_of_euler_at_the_same_grid(webui, capsys):
    on, off = ({"sgm_noise_multiplier": value} for value in (True, False))
    euler, _ = draw(webui, sampler_name="Euler", scheduler="Simple", override_settings=on)
    found = {}
    for name, options in (("on", on), ("off", off)):
        picture, text = draw(webui, sampler_name="DP-DMD", override_settings=options)
        found[name] = float(np.abs(picture - euler).max())
        assert "Sampler: DP-DMD, Schedule type: DP-DMD" in text
    bare, _ = draw(webui, "a red circle", sampler_name="DP-DMD")
    with capsys.disabled():
        effect = np.abs(bare - euler).mean()
        print(f"\n{webui.kind}: differences {found}, the LoRA changes {effect:.1f}")  # noqa: T201
    assert effect > 3
    assert max(found.values()) <= SAME


def test_prompts_joined_by_and_give_the_picture_of_euler(webui):
    """Two prompts of an image need the negative one, at CFG 1, too."""
    joined = f"{PROMPT} AND a blue square :0.6"
    told = {"negative_prompt": "grey", "override_settings": {"sgm_noise_multiplier": True}}
    theirs, _ = draw(webui, joined, sampler_name="Euler", scheduler="Simple", **told)
    found, _ = draw(webui, joined, sampler_name="DP-DMD", **told)
    alone, _ = draw(webui, sampler_name="DP-DMD", **told)
    assert np.abs(found - theirs).max() <= SAME
    assert np.abs(found - alone).mean() > 1


def test_the_accordion_sets_everything(webui):
    by_hand, _ = draw(webui, sampler_name="DP-DMD")
    wrong = {"sampler_name": "Euler a", "steps": 20, "cfg_scale": 7}
    found, text = draw(webui, PROMPT, *auto(), **wrong)
    assert np.array_equal(found, by_hand)
    assert "Steps: 4, Sampler: DP-DMD" in text and "CFG scale: 1" in text
    assert 'DP-DMD: "few: 4 steps, CFG 1"' in text
    by_itself, text = draw(webui, **wrong)
    assert "DP-DMD: off" in text and not np.array_equal(by_itself, found)
    _, text = draw(webui, "a red circle", *auto(), sampler_name="Euler a", steps=3)
    assert "Steps: 3, Sampler: Euler a" in text and "DP-DMD" not in text


def test_image_to_image_evaluates_trained_levels_only(webui):
    start, _ = draw(webui, sampler_name="DP-DMD")
    for strength, steps in ((0.5, 2), (0.3, 1), (1.0, 4)):
        _, text = draw(webui, sampler_name="DP-DMD", init_images=start, denoising_strength=strength)
        assert f"DP-DMD image steps: {steps} of 4" in text


def test_the_anchored_first_step_is_the_base_models_and_leaves_no_trace(webui):
    plain, _ = draw(webui, PROMPT, *auto())
    guided, text = draw(webui, PROMPT, *auto(True, FROM_FILE, "", "guided steps", 2, 3.0))
    again, _ = draw(webui, PROMPT, *auto(True, FROM_FILE, "", "guided steps", 2, 3.0))
    assert "DP-DMD anchored: 2 steps at CFG 3" in text
    assert np.array_equal(guided, again)
    assert np.abs(guided - plain).mean() > 1
    after, _ = draw(webui, PROMPT, *auto())
    assert np.array_equal(after, plain)


def test_a_batch_is_its_single_pictures(webui):
    for script in (auto(), auto(True, "LCM")):
        scripts = {SCRIPT: {"args": list(script)}}
        body = {"prompt": PROMPT, "seed": 5, "width": 64, "height": 64, "batch_size": 2}
        body |= {"alwayson_scripts": scripts, "override_settings": {"randn_source": "CPU"}}
        status, content = webui.request("/sdapi/v1/txt2img", body)
        assert status == 200, content[:500]
        images = [as_levels(text) for text in json.loads(content)["images"]][-2:]
        for number, image in enumerate(images):
            single, _ = draw(webui, PROMPT, *script, seed=5 + number, width=64, height=64)
            assert np.abs(image - single).max() <= SAME
        assert np.abs(images[0] - images[1]).mean() > 3


def test_a_plot_varies_what_it_is_asked_to(webui):
    info = webui.get("/sdapi/v1/script-info")
    plot = next(each for each in info if each["name"] == "x/y/z plot" and not each["is_img2img"])
    labels = plot["args"][0]["choices"]
    axes = [labels.index("Steps"), "2,4", [], labels.index("Sampler"), "DP-DMD,Euler", []]
    axes += [0, "", []]
    wanted = {
        "Draw legend": False,
        "Include Sub Images": True,
        "Use text inputs instead of dropdowns": True,
    }
    others = [wanted.get(each["label"], each["value"]) for each in plot["args"][len(axes) :]]
    wishes = {"script_name": "x/y/z plot", "script_args": [*axes, *others]}
    values = {SCRIPT: {"args": list(auto())}}
    body = {"prompt": PROMPT, "seed": 5, "width": 64, "height": 64, "alwayson_scripts": values}
    status, content = webui.request("/sdapi/v1/txt2img", body | wishes)
    assert status == 200, content[:500]
    texts = json.loads(json.loads(content)["info"])["infotexts"][1:]
    found = [re.search(r"Steps: (\d), Sampler: ([^,]*), Schedule type: ([^,]*)", t) for t in texts]
    assert [match.groups() for match in found if match] == [
        (steps, name, "DP-DMD") for name in ("DP-DMD", "Euler") for steps in "24"
    ]


def test_hires_fix_anchors_the_first_pass_alone(webui):
    hires = webui.hires_fix(denoising_strength=0.5, hr_second_pass_steps=9, width=64, height=64)
    anchored = auto(True, FROM_FILE, "", "guided steps", 2, 6.0)
    picture, text = draw(webui, PROMPT, *anchored, **hires)
    assert picture.shape == (128, 128, 3)
    assert "DP-DMD image steps: 2 of 4" in text and "DP-DMD anchored: 2 steps at CFG 6" in text


def test_second_passes_are_of_the_lora_alone(webui):
    """A detailer below and at the trained levels, and hires fix, after an anchored first pass."""
    details = {"a detailer": {"args": ["0.3,0.15"]}}
    anchored = {SCRIPT: {"args": list(auto(True, FROM_FILE, "", "guided steps", 2, 6.0))}}
    body = {"width": 64, "height": 64, "steps": 20, "cfg_scale": 7}
    _, text = webui.draw(PROMPT, alwayson_scripts=anchored | details, **body)
    calls = webui.calls()
    levels = [(kind, level) for kind, level, _ in calls]
    assert levels[0] == ("first", 14.615) and levels[2:5] == [
        ("first", 4.082), ("first", 1.613), ("first", 0.693)
    ]  # fmt: skip
    assert levels[5:] == [("detail 0.3", 0.693), ("detail 0.15", 0.454)]
    assert {cfg for _, _, cfg in calls} == {1.0}
    assert "CFG scale: 1" in text and "DP-DMD anchored: 2 steps at CFG 6" in text


def test_the_kind_that_was_chosen_holds_in_a_second_pass(webui):
    details = {"a detailer": {"args": ["0.6"]}}
    scripts = {SCRIPT: {"args": list(auto(True, "LCM"))}} | details
    webui.draw("a red circle <lora:plain:1>", alwayson_scripts=scripts, width=64, height=64)
    first = [level for kind, level, *_ in webui.calls() if kind == "first"]
    detail = [level for kind, level, *_ in webui.calls() if kind != "first"]
    assert first == pytest.approx(LCM_LEVELS, abs=2e-3)
    assert detail == pytest.approx(LCM_LEVELS[2:], abs=2e-3)


@pytest.mark.parametrize("anchored", [False, True], ids=["plain", "anchored"])
def test_every_host_evaluates_what_each_image_to_image_pass_asked(webui, anchored):
    """Image to image and inpainting at low and half strength, and batches, counted."""
    script = auto(True, FROM_FILE, "", "guided steps", 2, 6.0) if anchored else auto()
    small = {"width": 64, "height": 64}
    start, _ = draw(webui, PROMPT, *auto(), **small)
    mask = np.zeros((64, 64, 3))
    mask[16:48, 16:48] = 255
    masked = {"mask": as_png(mask), "inpainting_fill": 1, "mask_blur": 0}
    for more in ({}, masked):
        for strength, level in ((0.3, 0.693), (0.15, 0.454)):
            wishes = {"init_images": start, "denoising_strength": strength, **small, **more}
            picture, text = draw(webui, PROMPT, *script, **wishes)
            assert webui.calls() == [("first", level, 1.0)]
            assert "DP-DMD anchored" not in text
            if more:
                changed = np.abs(picture - start).max(axis=2) > SAME
                assert changed[16:48, 16:48].mean() > 0.5
                changed[16:48, 16:48] = False
                assert not changed.any()
        wishes |= {"init_images": start, "denoising_strength": 0.5}
        draw(webui, PROMPT, *script, **wishes)
        levels = [level for _, level, _ in webui.calls()]
        assert (levels[0], levels[-1], len(levels)) == (1.613, 0.693, 3 if anchored else 2)
    expected = 5 if anchored else 4
    draw(webui, PROMPT, *script, batch_size=3, **small)
    assert len(webui.calls()) == expected
    draw(webui, PROMPT, *script, n_iter=2, **small)
    assert len(webui.calls()) == 2 * expected


def test_a_foreign_few_step_lora_is_renoised_by_the_seed(webui):
    first, text = draw(webui, PROMPT, *auto(True, "LCM"))
    second, _ = draw(webui, PROMPT, *auto(True, "LCM"))
    assert "re-noising" in text and np.array_equal(first, second)
    other, _ = draw(webui, PROMPT, *auto(True, "LCM"), seed=6)
    assert not np.array_equal(first, other)


def test_a_lora_of_our_own_command_gives_its_pictures(webui, tmp_path, home, capsys):
    """Distilled while the host runs: found by name, and it draws the picture of `sample`."""
    name = "small-sd1" if webui.kind == "WEBUI" else "wide-sd1"
    checkpoint = webui.base / "models" / "Stable-diffusion" / f"{name}.safetensors"
    lora = webui.base / "models" / "Lora" / "distilled.safetensors"
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    size = ("--resolution", f"{SIDE}x{SIDE}", "--device", "cpu", "--dtype", "float32")
    quick = ("--steps", "6", "--student-lr", "0.01", "--fake-updates", "1", "--warmup-steps", "0")
    quiet = ("--evaluate-every", "0", "--preview-every", "0", "--evaluation-prompts", "0")
    files = ("--prompts", str(tmp_path / "prompts.txt"), "--output", str(lora))
    run = ("--run", str(tmp_path / "run"), "--anchor-step", "1", "--teacher-steps", "4")
    command("distill", str(checkpoint), *files, *size, *quick, *quiet, *run)
    options = ("--lora", str(lora), "--prompt", "a red circle", "--seeds", "5")
    command("sample", str(checkpoint), *options, *size, "--output", str(tmp_path / "out"))
    picture = Image.open(next((tmp_path / "out").glob("*.png"))).convert("RGB")
    ours = np.asarray(picture, dtype=np.float32)
    theirs, text = draw(webui, "a red circle <lora:distilled:1>", *auto())
    bare, _ = draw(webui, "a red circle", sampler_name="DP-DMD")
    difference, effect = np.abs(ours - theirs), np.abs(bare - theirs).mean()
    with capsys.disabled():
        worst, mean = difference.max(), difference.mean()
        print(f"\n8-bit levels: at most {worst:.1f}, mean {mean:.3f}; LoRA {effect:.1f}")  # noqa: T201
    assert 'DP-DMD: "distilled: 4 steps, CFG 1"' in text
    assert effect > 2
    assert difference.max() <= 2.0
