"""In real A1111, Forge, reForge, Neo: each pass evaluates what it was asked for, and no more.

Needs WEBUI_DIR, FORGE_DIR, REFORGE_DIR or NEO_DIR; see webui_server.py. Counted are forward passes
of the network: their noise levels, the guidance of their step, the rows of their batch and the
LoRA's strength in the network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from webui_files import UNET, WIDE_UNET, random_lora, small_sd1, wide_sd1
from webui_server import WebUI, as_levels, as_png

SCRIPT, FROM_FILE = "DP-DMD few-step LoRAs", "what the LoRA says"
PROMPT = "a red circle <lora:few:1>"
GRID = (14.615, 4.082, 1.613, 0.693)
"""Simple's levels in 4 steps, at which the LoRA was trained."""
IN_TWO = (14.615, 1.613)
BETWEEN = 7.297
"""The level at which the second of two guided steps to 4.082 begins."""
HALF_OF_TWO = 4.082
"""The same of two guided steps to 1.613."""
ANCHORED = [True, FROM_FILE, "", "guided steps", 2, 6.0]
PLAIN = [True, FROM_FILE, "", "off", 0, 0.0]
SIDE = 64
both = pytest.mark.parametrize("anchored", [False, True], ids=["plain", "anchored"])


class Call(NamedTuple):
    """One forward pass of the network."""

    kind: str
    level: float
    guidance: float
    rows: int
    lora: float


@pytest.fixture(scope="module", params=["WEBUI", "FORGE", "REFORGE", "NEO"])
def webui(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[WebUI]:
    """A running host that notes every evaluation."""
    server = WebUI(request.param, tmp_path_factory.mktemp(request.param.lower()))
    counter = Path(__file__).with_name("webui_counter.py")
    shutil.copy2(counter, server.base / "extensions" / "a-neighbour" / "scripts" / "counter.py")
    models = server.base / "models"
    small = server.kind == "WEBUI"
    (small_sd1 if small else wide_sd1)(models / "Stable-diffusion")
    random_lora(models / "Lora" / "few.safetensors", UNET if small else WIDE_UNET)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Drawn(NamedTuple):
    """What came of one request."""

    pictures: list[np.ndarray]
    texts: list[str]
    calls: list[Call]


def draw(webui: WebUI, anchored: bool, prompt: str = PROMPT, **wishes: Any) -> Drawn:
    """Pictures, infotexts and the evaluations that they took; the sliders ask for other things."""
    noted = webui.base / "evaluations.jsonl"
    noted.write_text("")
    scripts = {SCRIPT: {"args": ANCHORED if anchored else PLAIN}}
    scripts |= wishes.pop("scripts", {})
    body = {"prompt": prompt, "negative_prompt": "grey", "seed": 5, "width": SIDE, "height": SIDE}
    body |= {"sampler_name": "Euler a", "steps": 20, "cfg_scale": 7}
    body |= {"alwayson_scripts": scripts, "override_settings": {"randn_source": "CPU"}, **wishes}
    kind = "img2img" if "init_images" in body else "txt2img"
    status, content = webui.request(f"/sdapi/v1/{kind}", body)
    assert status == 200, (content[:500], webui.said()[-3000:])
    answer = json.loads(content)
    lines = noted.read_text().splitlines()
    calls = [Call(**json.loads(line)) for line in lines]
    pictures = [as_levels(text) for text in answer["images"]]
    return Drawn(pictures, json.loads(answer["info"])["infotexts"], calls)


def student(kind: str, levels: tuple[float, ...], rows: int = 1, lora: float = 1.0) -> list[Call]:
    """The LoRA's evaluations: at CFG 1, without the negative prompt."""
    return [Call(kind, level, 1.0, rows, lora) for level in levels]


def whole(anchored: bool, rows: int = 1, lora: float = 1.0) -> list[Call]:
    """A text to image pass of 4 steps, whose first is of the base model where it is anchored."""
    if not anchored:
        return student("txt2img", GRID, rows, lora)
    base = [Call("txt2img", level, 6.0, 2 * rows, 0.0) for level in (GRID[0], BETWEEN)]
    return base + student("txt2img", GRID[1:], rows, lora)


def same(found: list[Call], expected: list[Call]) -> None:
    """Levels agree to the third digit, all the rest exactly."""
    assert [call._replace(level=0.0) for call in found] == [
        call._replace(level=0.0) for call in expected
    ]
    for call, wanted in zip(found, expected, strict=True):
        assert call.level == pytest.approx(wanted.level, abs=2e-3)


@both
def test_text_to_image(webui, anchored):
    drawn = draw(webui, anchored)
    same(drawn.calls, whole(anchored))
    assert ("DP-DMD anchored: 2 steps at CFG 6" in drawn.texts[0]) is anchored


@both
def test_a_batch_and_a_number_of_batches(webui, anchored):
    same(draw(webui, anchored, batch_size=3).calls, whole(anchored, rows=3))
    same(draw(webui, anchored, n_iter=2).calls, 2 * whole(anchored))


@both
def test_hires_fix(webui, anchored):
    hires = webui.hires_fix(hr_second_pass_steps=9)
    for strength, levels in ((0.5, GRID[2:]), (0.3, GRID[3:])):
        drawn = draw(webui, anchored, denoising_strength=strength, **hires)
        same(drawn.calls, whole(anchored) + student("hires", levels))
    again = draw(webui, anchored, n_iter=2, denoising_strength=0.3, **hires)
    same(again.calls, 2 * (whole(anchored) + student("hires", GRID[3:])))


@pytest.fixture(scope="module")
def picture(webui) -> str:
    """Some picture, as the API takes it."""
    return as_png(draw(webui, anchored=False).pictures[0])


@both
@pytest.mark.parametrize(("strength", "level"), [(0.3, GRID[3]), (0.15, 0.454)])
def test_image_to_image_of_one_step(webui, picture, anchored, strength, level):
    """Nothing is left to the base model; below the trained levels it starts where it is asked."""
    drawn = draw(webui, anchored, init_images=[picture], denoising_strength=strength)
    same(drawn.calls, student("img2img", (level,)))
    assert "DP-DMD image steps: 1 of 4" in drawn.texts[0]
    assert "DP-DMD anchored" not in drawn.texts[0] and "CFG scale: 1.0," in drawn.texts[0]


@both
def test_image_to_image_of_two_steps(webui, picture, anchored):
    drawn = draw(webui, anchored, init_images=[picture], denoising_strength=0.5)
    calls = drawn.calls
    if anchored:  # the base model samples from 1.613 to the LoRA's next level
        same(calls[:1], [Call("img2img", GRID[2], 6.0, 2, 0.0)])
        assert (calls[1].guidance, calls[1].rows, calls[1].lora) == (6.0, 2, 0.0)
        assert GRID[3] < calls[1].level < GRID[2]
        same(calls[2:], student("img2img", GRID[3:]))
    else:
        same(calls, student("img2img", GRID[2:]))


@both
@pytest.mark.parametrize("alone", [False, True], ids=["whole", "masked-part-alone"])
def test_inpainting(webui, picture, anchored, alone):
    """The same evaluations as image to image; what is not masked stays."""
    mask = np.zeros((SIDE, SIDE, 3))
    mask[16:48, 16:48] = 255
    wishes = {"init_images": [picture], "mask": as_png(mask), "inpainting_fill": 1}
    wishes |= {"inpaint_full_res": alone, "inpaint_full_res_padding": 8, "mask_blur": 0}
    drawn = draw(webui, anchored, denoising_strength=0.3, **wishes)
    same(drawn.calls, student("img2img", GRID[3:]))
    changed = np.abs(drawn.pictures[0] - as_levels(picture)).max(axis=2) > 0
    assert changed[16:48, 16:48].mean() > 0.5
    changed[16:48, 16:48] = False
    assert not changed.any()
    calls = draw(webui, anchored, denoising_strength=0.5, **wishes).calls
    assert [call.level for call in calls if call.lora][-1] == pytest.approx(GRID[3], abs=2e-3)
    assert len(calls) == (3 if anchored else 2)


def plot(webui: WebUI, *axes: tuple[str, str]) -> dict[str, Any]:
    """The host's X/Y/Z plot of some axes and their values."""
    info = webui.get("/sdapi/v1/script-info")
    script = next(each for each in info if each["name"] == "x/y/z plot" and not each["is_img2img"])
    labels = script["args"][0]["choices"]
    padded = [*axes, *[("Nothing", "")] * (3 - len(axes))]
    values = [value for axis, text in padded for value in (labels.index(axis), text, [])]
    wanted = {"Draw legend": False, "Include Sub Images": True}
    wanted["Use text inputs instead of dropdowns"] = True
    values += [wanted.get(each["label"], each["value"]) for each in script["args"][9:]]
    return {"script_name": "x/y/z plot", "script_args": values}


@both
def test_a_plot_of_steps_and_strengths(webui, anchored):
    axes = (("Steps", "2,4"), ("Prompt S/R", "few:1>,few:0.5>"))
    drawn = draw(webui, anchored, **plot(webui, *axes))
    expected = []
    for lora in (1.0, 0.5):
        for steps in (2, 4):
            found = whole(anchored, lora=lora)
            if steps == 2 and not anchored:
                found = student("txt2img", IN_TWO, lora=lora)
            elif steps == 2:
                base = [found[0], found[1]._replace(level=HALF_OF_TWO)]
                found = [*base, *student("txt2img", IN_TWO[1:], lora=lora)]
            expected += found
    same(drawn.calls, expected)
    assert len(drawn.texts) == 5


@both
def test_a_plot_of_samplers(webui, anchored):
    """Other samplers take our schedule and the LoRA's CFG, and are never anchored."""
    drawn = draw(webui, anchored, **plot(webui, ("Sampler", "DP-DMD,Euler")))
    first = whole(anchored)
    same(drawn.calls[: len(first)], first)
    euler = drawn.calls[len(first) :]
    rows = 2 if webui.kind == "WEBUI" else 1  # A1111 evaluates the negative prompt at CFG 1, too
    same(euler, student("txt2img", GRID, rows))
    said = ["DP-DMD anchored" in text for text in drawn.texts[1:]]
    assert said == [anchored, False]


@both
def test_a_plot_of_guidance(webui, anchored):
    """It is the base model's where the first step is anchored, else the LoRA's."""
    drawn = draw(webui, anchored, **plot(webui, ("CFG Scale", "1,3")))
    found = [(call.guidance, call.rows, call.lora) for call in drawn.calls]
    if anchored:
        base = [[(1.0, 1, 0.0)] * 2, [(3.0, 2, 0.0)] * 2]
        assert found == [*base[0], *[(1.0, 1, 1.0)] * 3, *base[1], *[(1.0, 1, 1.0)] * 3]
    else:
        assert found == [*[(1.0, 1, 1.0)] * 4, *[(3.0, 2, 1.0)] * 4]


@both
def test_what_a_detailer_redoes(webui, anchored):
    details = {"a detailer": {"args": ["0.3,0.15"]}}
    drawn = draw(webui, anchored, scripts=details)
    redone = [*student("detail 0.3", GRID[3:]), *student("detail 0.15", (0.454,))]
    same(drawn.calls, whole(anchored) + redone)
