"""The package command end to end: all that it writes, read by code that shares nothing with it."""

from __future__ import annotations

import json
import zipfile

import pytest
import share_readers as readers
import yaml
from dpdmd_studio.cli import main
from PIL import Image
from safetensors.torch import load_file
from share_packages import HOSTILE, package, recipe, student

pytestmark = pytest.mark.usefixtures("home")
PROMPTS = ["a cat", "a (tall:1.2) house, été", "a red dog"]
NAME = "Four step, v1"
STEM = "Four-step-v1"
REPORT = {
    "arms": [
        {"name": f"Teacher {HOSTILE}", "evaluations": 56, "seconds_per_picture": 1.254,
         "measures": {"sample_diversity": 0.25, "evenness": 0.924}},
        {"name": "few, 4 steps", "evaluations": 4, "seconds_per_picture": 0.1,
         "measures": {"sample_diversity": None, "evenness": 0.895}},
    ],
    "measure_labels": {"sample_diversity": ["Diversity", "how unlike seeds are"],
                       "evenness": ["Evenness", "of what is left open"]},
    "measure_units": {"sample_diversity": ""},
    "prompts": ["x"] * 5, "seeds": [1, 2, 3],
}  # fmt: skip


@pytest.fixture(scope="module")
def lora(files, tmp_path_factory):
    return student(tmp_path_factory.mktemp("loras"), files["sd1"], clip_skip=2)


@pytest.fixture(scope="module")
def packaged(files, lora, tmp_path_factory):
    """(folder of a package, what the command printed)."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setenv("DPDMD_HOME", str(folder / "home"))
    code = package(
        lora, files["sd1"], "--prompts", folder / "prompts.txt", "--output", folder / "out",
        "--name", NAME, "--author", HOSTILE, "--license", "Mine alone", "--count", 7,
        "--report", folder / "report.json", "--trigger-words", "fast, 4 steps",
        "--cover", 3, "--json",
    )  # fmt: skip
    patch.undo()
    assert code == 0
    return folder / "out"


def test_folder_and_zip_hold_the_same_files_under_relative_names(packaged):
    inside = {p.relative_to(packaged).as_posix() for p in packaged.rglob("*") if p.is_file()}
    assert inside == {
        *(f"{STEM}{end}" for end in (".safetensors", ".json", ".civitai.info", ".preview.png")),
        *(f"pictures/{number:02d}.png" for number in range(1, 8)),
        *("cover.png", "description.md", "description.html", "README.md", "CIVITAI.txt"),
        *("workflow.json", "package.json"),
    }
    with zipfile.ZipFile(packaged.with_name("out.zip")) as archive:
        assert archive.testzip() is None
        assert {name.removeprefix(f"{STEM}/") for name in archive.namelist()} == inside
        for name in inside:
            assert archive.read(f"{STEM}/{name}") == (packaged / name).read_bytes()
    assert not list(packaged.parent.glob("*.part"))


def test_only_the_header_of_the_lora_changed_and_its_hashes_are_true(packaged, lora):
    entries, metadata, body = readers.safetensors_parts(packaged / f"{STEM}.safetensors")
    old_entries, old, old_body = readers.safetensors_parts(lora)
    assert (entries, body) == (old_entries, old_body)
    assert metadata["sshs_model_hash"] == readers.sha256(body)
    assert metadata["modelspec.hash_sha256"] == "0x" + readers.sha256(body)
    changed = {key: value for key, value in metadata.items() if old.get(key) != value}
    assert changed == {
        "ss_output_name": STEM,
        "modelspec.title": NAME,
        "modelspec.author": HOSTILE,
        "modelspec.license": "Mine alone",
        "modelspec.trigger_phrase": "fast, 4 steps",
    }
    assert old.keys() <= metadata.keys()
    tensors = load_file(packaged / f"{STEM}.safetensors")  # the format's own library agrees
    assert tensors.keys() == entries.keys()


def test_images_state_what_they_were_sampled_with(packaged, files):
    lora = readers.file_hashes(packaged / f"{STEM}.safetensors")
    model = readers.file_hashes(files["sd1"])
    drawn = []
    for number in range(1, 8):
        path = packaged / "pictures" / f"{number:02d}.png"
        found = readers.civitai_reads(readers.png_text(path, "parameters"))
        prompt, _, tag = found["prompt"].rpartition(" ")
        assert tag == f"<lora:{STEM}:1>"
        assert found["resources"] == [
            {"type": "lora", "name": STEM, "weight": 1.0, "hash": lora["AutoV3"]}
        ]
        assert (found["Model"], found["Model hash"]) == ("sd1", model["AutoV2"])
        assert found["Size"] == "32x32"  # the tiny VAE's own images are smaller
        stated = [found[key] for key in ("steps", "sampler", "Schedule type", "cfgScale")]
        assert stated == ["4", "Euler", "Simple", "1"]
        assert (found["clipSkip"], found["negative"], found["RNG"]) == ("2", "", "CPU")
        drawn.append((prompt, found["seed"]))
    assert len(set(drawn)) == 7
    assert {prompt for prompt, _ in drawn} == set(PROMPTS)
    assert len({seed for prompt, seed in drawn if prompt == "a cat"}) == 3


def test_the_stated_settings_draw_the_same_picture(packaged, files, lora, tmp_path):
    path = packaged / "pictures" / "05.png"
    found = readers.civitai_reads(readers.png_text(path, "parameters"))
    prompt = found["prompt"].rpartition(" ")[0]
    options = ("--lora", str(lora), "--prompt", prompt, "--seeds", found["seed"])
    assert main(["sample", str(files["sd1"]), *options, "--output", str(tmp_path)]) == 0
    (again,) = tmp_path.glob("*.png")
    with Image.open(path) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()


def test_cover_and_preview_are_the_picture_that_was_chosen(packaged):
    third = (packaged / "pictures" / "03.png").read_bytes()
    assert (packaged / "cover.png").read_bytes() == third
    assert (packaged / f"{STEM}.preview.png").read_bytes() == third


def test_cards_for_hosts_and_tools(packaged):
    hashes = readers.file_hashes(packaged / f"{STEM}.safetensors")
    info = json.loads((packaged / f"{STEM}.civitai.info").read_text(encoding="utf-8"))
    assert info["baseModel"] == "SD 1.5"
    assert info["trainedWords"] == ["fast", "4 steps"]
    (file,) = info["files"]
    assert file["name"] == f"{STEM}.safetensors"
    assert file["sizeKB"] * 1024 == (packaged / file["name"]).stat().st_size
    stated = {name: value.lower() for name, value in file["hashes"].items()}
    assert hashes.pop("AutoV1") == readers.sha256(b"")[:8]  # under one mebibyte: names nothing
    assert stated == hashes
    card = json.loads((packaged / f"{STEM}.json").read_text(encoding="utf-8"))
    assert (card["sd version"], card["preferred weight"]) == ("SD1", 1.0)
    assert (card["activation text"], card["negative text"]) == ("fast, 4 steps", "")
    assert "Euler, Schedule type Simple, 4 steps, CFG 1, strength 1.0" in card["description"]
    assert "negative prompt does nothing" in card["notes"]


def test_the_descriptions_hold_settings_numbers_and_no_foreign_markup(packaged):
    page = (packaged / "description.html").read_text(encoding="utf-8")
    tags, text = readers.read_html(page)
    assert {tag for tag, _ in tags} <= {
        *("html", "head", "meta", "title", "body", "h1", "h2", "p", "ul", "li", "strong", "code"),
        *("pre", "a", "table", "thead", "tbody", "tr", "th", "td"),
    }
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert links == {"https://arxiv.org/abs/2602.03139"}
    markdown = (packaged / "description.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("`", "") and "<script" not in page
    assert "](http://e" not in markdown
    assert HOSTILE in text  # shown as it is
    for shown in ("56", "1.25", "0.25", "92.4%", "89.5%", "5 prompts with 3 seeds", "Mine alone"):
        assert shown in text and shown in markdown.replace("\\", ""), shown
    assert "CreativeML OpenRAIL-M" in text
    assert "| few, 4 steps | 4 | 0.10 | - | 89.5% |" in markdown


def test_the_model_card_has_front_matter(packaged):
    card = (packaged / "README.md").read_text(encoding="utf-8")
    front, text = card.removeprefix("---\n").split("\n---\n", 1)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (facts["library_name"], facts["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert (facts["license"], facts["license_name"]) == ("other", "mine-alone")
    assert [item["text"] for item in facts["widget"]][:3] == PROMPTS
    assert all((packaged / item["output"]["url"]).is_file() for item in facts["widget"])
    assert text.startswith(f"\n# {NAME}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{plain}", "{sd1}"), "holds no recipe"),
        (("{sd1}", "{sd1}"), "sd1.safetensors"),
        (("{lora}", "{sd3}"), "is a LoRA for SD 1.x, but sd3.safetensors is SD3"),
        (("{lora}",), "name it behind the LoRA"),
        (("{lora}", "{sd1}", "--count", "5"), "6 to 200"),
        (("{lora}", "{sd1}", "--cover", "9"), "images 1 to 8"),
        (("{lora}", "{sd1}", "--seeds", "3"), "3 prompts and 1 seeds make 3"),
        (("{lora}", "{sd1}", "--base-model", "Flux"), "SD 1.5, SD 1.4"),
        (("{lora}", "{sd1}", "--report", "{lora}"), "is not a report of this program"),
        (("{lora}", "{sd1}", "--name", "x" * 201), "name has 201 characters"),
        (("{lora}", "no-such-model.safetensors"), "There is no checkpoint file"),
        (("no-such-lora.safetensors", "{sd1}"), "no-such-lora.safetensors"),
        (("{folder}", "{sd1}"), "is not a run"),
        (("{own}", "{sd1}"), "needs the DP-DMD sampler"),
    ],
)
def test_mistakes_are_one_clear_line(files, lora, tmp_path, capsys, arguments, message):
    from safetensors.torch import save_file

    folder, prompts = tmp_path / "folder", tmp_path / "prompts.txt"
    folder.mkdir()
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    named = {"lora": lora, "folder": folder, "sd1": files["sd1"], "sd3": files["sd3"]}
    tensors = load_file(lora)
    for name, metadata in (("plain", None), ("own", {"dpdmd.recipe": OWN_GRID.to_json()})):
        named[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, named[name], metadata)
    given = [argument.format(**named) for argument in arguments]
    output = tmp_path / "out"
    assert package(*given, "--prompts", prompts, "--output", output) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not output.exists() and not output.with_name("out.zip").exists()


OWN_GRID = recipe("sd1", sigmas=(14.6, 9.0, 3.0, 1.0, 0.0), timesteps=(999.0, 900.0, 700.0, 300.0))
