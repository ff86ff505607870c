"""One answer and one picture for every file of the corpus, whoever asks and however it is written.

`inspect`, the page's form, ComfyUI's node, `estimate` and loading agree on what a file is and, with
the same words, on why it will not do; what they take gives the same tensors to the bit.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import corpus
import corpus_refused
import pytest
import torch
from corpus import Item
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.new_run import check_request
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.app.gui.forms import distill_hints
from dpdmd_studio.app.library import choices as sources
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.cli import main
from dpdmd_studio.comfy_nodes.training import new_run
from dpdmd_studio.core.errors import DPDMDError, LoraError
from dpdmd_studio.trainer.loading.checkpoint import LoadedCheckpoint, Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.teacher_loras import check_teacher_loras
from safetensors.torch import save_file

OPTIONS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5", "qwen3": "qwen"}
INPUTS = {
    "prompts": "a cat\na dog", "output_name": "mine", "preset": "none", "steps": 8, "num_steps": 4,
    "resolution": "", "batch_size": 0, "student_rank": 0, "student_lr": 0.0,
    "teacher_guidance": 0.0, "diversity_weight": 0.05, "seed": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def hosts(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the test is where the page and the node look for models."""
    host = "dpdmd_studio.comfy_nodes.host"
    monkeypatch.setattr(sources, "folders", lambda: [tmp_path])
    monkeypatch.setattr(f"{host}.folders.file_path", lambda kind, name: Path(name))
    monkeypatch.setattr(f"{host}.folders.paths", lambda *kinds: [tmp_path / kinds[0]])
    monkeypatch.setattr(f"{host}.running.device_memory", lambda: 0)


def words(text: object) -> str:
    """A message as one line, without markup."""
    return " ".join(unescape(re.sub("<[^>]+>", " ", str(text))).split())


def named(item: Item) -> dict[str, str]:
    """The files beside the checkpoint, as front ends call them."""
    found = {OPTIONS[kind]: str(path) for kind, path in item.encoders.items()}
    return found | ({"vae": str(item.vae)} if item.vae else {})


def by_inspect(item: Item) -> tuple[str, str]:
    try:
        facts = inspect(item.path, hashed=False)
    except DPDMDError as error:
        return "refused", words(error)
    if "problem" in facts or facts["kind"] == "LoRA":
        return "refused", words(facts.get("problem", "is a LoRA"))
    return "taken", f"{facts['title']}, {facts['prediction']}"


def by_form(item: Item) -> tuple[str, str]:
    found = distill_hints.describe_checkpoint({"checkpoint": str(item.path)} | named(item))
    if found["checkpoint_note"]:
        return "refused", words(found["checkpoint_note"])
    match = re.search(r"Model (.+) Predicts (\w+)", words(found["detected"]))
    assert match
    return "taken", f"{match[1]}, {match[2]}"


def by_node(item: Item) -> tuple[str, str]:
    values = INPUTS | {"checkpoint": str(item.path)} | named(item)
    try:
        new_run.ask(values, None, None)
    except DPDMDError as error:
        return "refused", words(error)
    return "taken", ""


def by_estimate(item: Item, capsys: pytest.CaptureFixture) -> tuple[str, str]:
    options = [f"--{name.replace('_', '-')}={path}" for name, path in named(item).items()]
    capsys.readouterr()  # whatever made the file
    code = main(["estimate", str(item.path), "--memory=12gb", *options])
    out, err = capsys.readouterr()
    if code:
        return "refused", words(err).removeprefix("error: ")
    return "taken", out.split(", ", 1)[0]


def by_loading(item: Item) -> tuple[LoadedCheckpoint | None, tuple[str, str]]:
    overrides = Overrides(text_encoders=item.encoders, vae=item.vae)
    try:
        loaded = open_checkpoint(
            item.path, dtype=torch.float32, device="cpu", overrides=overrides
        ).load()
    except DPDMDError as error:
        return None, ("refused", words(error))
    return loaded, ("taken", f"{loaded.detection.title}, {loaded.detection.prediction}")


def answers(item: Item, capsys: pytest.CaptureFixture) -> tuple[LoadedCheckpoint | None, dict]:
    """What each says: (the loaded checkpoint, if it is, (taken or refused, words) by asker)."""
    loaded, by_load = by_loading(item)
    found = {"inspect": by_inspect(item), "form": by_form(item), "node": by_node(item),
             "estimate": by_estimate(item, capsys)}  # fmt: skip
    return loaded, {"loading": by_load} | found


@pytest.mark.parametrize(("name", "layout"), corpus.WRITTEN)
def test_every_layout_gives_the_same_network_and_one_answer(name, layout, tmp_path, capsys):
    item = corpus.write(tmp_path, name, layout)
    loaded, found = answers(item, capsys)
    assert {kind for kind, _ in found.values()} == {"taken"}, found
    assert found["inspect"] == found["form"] == found["loading"], found
    assert found["loading"][1].startswith(found["estimate"][1]), found
    assert loaded is not None
    made = corpus.tiny(name)
    assert_same(loaded.network, made.denoiser)
    assert loaded.encoders.keys() == made.encoders.keys()
    for kind, component in loaded.encoders.items():
        assert_same(component.load(torch.float32, "cpu"), made.encoders[kind])
    assert (loaded.decoder is None) == (layout == "no VAE")
    if loaded.decoder is not None:
        assert made.vae is not None
        decoder = loaded.decoder.component.load(torch.float32, "cpu").state_dict()
        expected = made.vae.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in decoder.items())
    assert not any("unknown" in note for note in loaded.notes), loaded.notes


def assert_same(found: torch.nn.Module, source: torch.nn.Module) -> None:
    """Every parameter is the source's, to the bit."""
    expected, values = source.state_dict(), found.state_dict()
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(values[name], value), name


@pytest.mark.parametrize("kind", corpus_refused.REFUSED)
def test_what_is_not_read_is_refused_by_all_with_the_same_words(kind, tmp_path, capsys):
    case = corpus_refused.REFUSED[kind]
    path = case.make(tmp_path, corpus.state_of(case.name))
    loaded, found = answers(Item(path), capsys)
    assert loaded is None
    assert {kind for kind, _ in found.values()} == {"refused"}, found
    if kind == "a LoRA":  # which inspect has more to say of
        found["inspect"] = found["loading"]
    assert len({text for _, text in found.values()}) == 1, found
    assert re.search(case.words, found["loading"][1]), found["loading"]


@pytest.mark.parametrize("name", corpus.MAKERS)
def test_a_denoiser_alone_is_known_to_all_who_also_say_what_it_lacks(name, tmp_path, capsys):
    whole = corpus.write(tmp_path, name, corpus.SEPARATE)
    for file in (*whole.encoders.values(), whole.vae):  # which would be found beside it
        assert file is not None
        file.unlink()
    item = Item(whole.path)
    _, found = answers(item, capsys)
    assert found["loading"] == found["node"] and found["loading"][0] == "refused"
    lacks = found["loading"][1]
    assert words(inspect(item.path, hashed=False)["notes"]).count(lacks) == 1
    shown = distill_hints.describe_checkpoint({"checkpoint": str(item.path)})
    assert lacks in words(shown["detected"]) and not shown["checkpoint_note"]
    assert main(["estimate", str(item.path), "--memory=12gb"]) == 0
    assert lacks in words(capsys.readouterr().out)


Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = {f"{Q}.lora_down.weight": torch.ones(2, 32), f"{Q}.lora_up.weight": torch.ones(32, 2)}
OF_SD1 = {
    f"{Q.replace('attn1_to_q', 'attn2_to_k')}.lora_{half}.weight": torch.ones(shape)
    for half, shape in (("down", (2, 768)), ("up", (32, 2)))
}
LORAS = {
    "half a pair": {f"{Q}.lora_down.weight": torch.ones(2, 32)},
    "DoRA": PAIR | {f"{Q}.dora_scale": torch.ones(32)},
    "numbered layers": {"weights.0.lora_up": torch.ones(2, 2)},
    "whole numbers": {key: value.to(torch.int8) for key, value in PAIR.items()},
    "an alpha of two numbers": PAIR | {f"{Q}.alpha": torch.ones(2)},
    "two adapters": {
        f"unet.x.lora_{half}.{name}.weight": torch.ones(2, 2) for half in "AB" for name in "ab"
    },
    "an encoder that the family lacks": OF_SD1
    | {f"lora_te2_x.lora_{half}.weight": torch.ones(2, 2) for half in ("down", "up")},
    "one layer of an encoder under two names": OF_SD1
    | {
        f"lora_te_{outer}encoder_x.lora_{half}.weight": torch.ones(2, 2)
        for half in ("down", "up")
        for outer in ("", "text_model_")
    },
    "a replaced weight": PAIR | {f"{Q}.set_weight": torch.ones(32, 32)},
    "a difference of nothing": {f"{Q}.diff": torch.ones(0, 32)},
    "another family": {
        key.replace("attn1_to_q", "attn2_to_k"): value
        for key, value in (PAIR | {f"{Q}.lora_down.weight": torch.ones(2, 2048)}).items()
    },
}


@pytest.mark.parametrize("kind", LORAS)
def test_a_teacher_lora_is_refused_before_a_run_is_queued_as_when_it_is_merged(kind, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({key: value.clone() for key, value in LORAS[kind].items()}, path)
    base = corpus.save(tmp_path / "base.safetensors", corpus.state_of("sd1"))
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(base)),
        config=DistillConfig(),
        output=str(tmp_path / "new.safetensors"),
        teacher_loras=(TeacherLora(path=str(path)),),
    )
    with pytest.raises(LoraError) as queued:
        check_request(tmp_path / "run", request, overwrite=False)
    with pytest.raises(LoraError) as merged:
        check_teacher_loras(request, {})
    assert str(queued.value) == str(merged.value)
    if kind != "another family":  # which inspect does not know the model of
        assert inspect(path, hashed=False)["problem"] == str(merged.value)
