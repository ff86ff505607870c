"""Inputs made up at random, kind by kind: each has to end in an answer or in one of our errors.

A kind is a function of (random numbers, a folder of its own) that makes one input and gives it to
all who read such inputs. `run` counts, and keeps the slowest input and every foreign exception.
"""

from __future__ import annotations

import json
import math
import ntpath
import posixpath
import random
import shutil
import struct
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import corpus
import corpus_refused
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, parse_seeds
from dpdmd_studio.app.findings.diagnosis import diagnose
from dpdmd_studio.app.jobs.job import read_job
from dpdmd_studio.app.library.inspect import format_text, inspect
from dpdmd_studio.app.library.path_checks import check_name, lora_file, typed_path
from dpdmd_studio.app.prompts.expansion import expand
from dpdmd_studio.app.prompts.images import image_prompt
from dpdmd_studio.app.prompts.infotext import infotext_prompts
from dpdmd_studio.app.prompts.reading import parse_line, parse_prompts
from dpdmd_studio.app.runs.directory import SETTINGS_VERSION, RunDirectory
from dpdmd_studio.app.runs.settings_file import import_settings, settings_of_lora
from dpdmd_studio.core import families
from dpdmd_studio.core.errors import CheckpointError, DPDMDError, LoraError, NonFiniteError
from dpdmd_studio.core.families import check_files, check_own_parts
from dpdmd_studio.core.files.tensor_file import DTYPE_BITS, read_header
from dpdmd_studio.core.lora.file import LoraFile, open_lora
from dpdmd_studio.core.lora.keys import DIFFERENCES, LoraModule
from dpdmd_studio.core.lora.text_encoders import text_encoder_parts
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, Recipe, usage_hint

Act = Callable[[], object]
REFUSALS = ("refused", "no numbers")
LONGEST = 1.0
"""Seconds that no input may take."""

# Texts and values

WORDS = (
    "( ) [ ] { } | : :: $$ - .5 a cat BREAK AND \\ \" ' , prompt __a__ embedding:x # ~ / NaN 1e999"
    " null [[ ]] 日 \u200b \ufeff <lora:a:1> <x: --ar &amp; Steps: 20 Seed: Sampler: Size: 8x8"
)
OTHERS = ("\n", "\r", " ", "\t", "\0", "\ud83d", "\udcff", "\u2028", "9" * 40)
PIECES = (*WORDS.split(), *OTHERS, '{"prompt": "a"}', "Negative prompt:", "\nSteps: 20, Seed: 1")
FIELDS = ("parameters", "prompt", "Comment", "Description", "Software")
NAMES = ("prompt", "image", "class_type", "inputs", "positive", "text", "steps", "path", "model")
ODD = (
    None, True, False, 0, 1, -1, 2, 7, 32, 64, 1.5, 1e300, -0.0, float("nan"), float("inf"),
    10**30, 10**400, 2**63, "", "abc", "2", [], [1], [0], [1, 2], [1, [2]], [None],
    ["DownBlock2D"], {}, {"a": 1}, "\0", [64] * 400, "x" * 3000, "\ud800",
)  # fmt: skip


def text(rng: random.Random, most: int) -> str:
    """Up to so many pieces of prompts, of other programs' texts, and of what is neither."""
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(most)))


def value(rng: random.Random, depth: int = 0) -> object:
    """Anything that JSON may hold."""
    kind = rng.randrange(6)
    if kind == 0 and depth < 4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 1 and depth < 4:
        return {rng.choice(NAMES): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return text(rng, 6) if kind < 4 else rng.choice(ODD)


def changed(rng: random.Random, whole: dict) -> dict:
    """A table with an entry or two of another kind, missing, or new."""
    found = dict(whole)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice([*whole, "unheard_of"])
        if rng.random() < 0.2:
            found.pop(name, None)
        else:
            found[name] = value(rng) if rng.random() < 0.5 else rng.choice(ODD)
    return found


# Model files

STEMS = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "unet.mid_block.x",
    "transformer.joint_blocks.0.x_block.attn.qkv.1",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "clip_g.text_projection",
    "t5.encoder.block.0",
    "base_model.model.text_model.x",
    "",
)
DOWN, UP, CORE = (2, 4), (4, 2), (2, 2, 3, 3)
PAIR = {".lora_down.weight": DOWN, ".lora_up.weight": UP}
LOHA = {f".hada_w{n}_{half}": size for n in "12" for half, size in (("a", UP), ("b", DOWN))}
LOKR = {".lokr_w1": (2, 2), ".lokr_w2_a": UP, ".lokr_w2_b": DOWN}
GROUPS = (
    PAIR | {".alpha": ()},
    {".lora_A.weight": DOWN, ".lora_B.weight": UP},
    {".lora_A.x.weight": DOWN, ".lora_B.x.weight": UP},
    LOHA | {".alpha": ()},
    dict.fromkeys(LOHA, DOWN) | {".hada_t1": CORE, ".hada_t2": CORE, ".alpha": ()},
    LOKR | {".alpha": ()},
    PAIR | {".lora_mid.weight": CORE},
    {".lokr_w1": (2, 2), ".lokr_w2": (4, 4, 3, 3), ".alpha": ()},
    {".diff": (4, 4), ".diff_b": (4,)},
    {".w_norm": (4,), ".b_norm": (4,)},
    PAIR | {".diff_b": (4,)},
)
MORE = (".dora_scale", ".diff", ".weight", ".on_input", ".scale_weight", ".clip_l",
        ".lora_A.y.weight", ".lokr_w1_b", ".lora_mid.weight", ".hada_t1")  # fmt: skip
FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64")
METADATA = (
    {}, {"lora_adapter_metadata": "{}"}, {"lora_adapter_metadata": "[[[["},
    {"lora_adapter_metadata": '{"unet.lora_alpha": 4}'}, {"ss_base_model_version": "sdxl_x"},
)  # fmt: skip


def made_up(chance: random.Random) -> bytes:
    """A LoRA's safetensors file: mostly plausible, with a few things at odds."""
    table, body = {}, b""
    for stem in chance.sample(STEMS, chance.randint(1, 2)):
        shapes = dict(chance.choice(GROUPS))
        if chance.random() < 0.1:
            shapes[chance.choice(MORE)] = DOWN
        if chance.random() < 0.1:
            shapes.pop(chance.choice(list(shapes)))
        for ending, usual in shapes.items():
            shape = usual
            if chance.random() < 0.05:
                shape = tuple(chance.choices((0, 1, 2, 4), k=chance.randint(0, 5)))
            dtype = chance.choice(FLOATS if chance.random() < 0.99 else tuple(DTYPE_BITS))
            size = -(-math.prod(shape) * DTYPE_BITS[dtype] // 8)
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
            table[stem + ending] = entry
            filled = (b"<" * size, bytes(size), chance.randbytes(size))
            body += chance.choices(filled, (8, 1, 1))[0]
    return with_header(table | {"__metadata__": chance.choice(METADATA)}, body)


def with_header(table: dict, body: bytes = b"") -> bytes:
    """A safetensors file of that header."""
    content = json.dumps(table).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content + body


def opened(path: Path) -> tuple[LoraFile | None, str | None]:
    """(the file, None), or (None, why not)."""
    try:
        return open_lora(path), None
    except LoraError as error:
        return None, str(error)


def read_as_lora(path: Path) -> str:
    """How a LoRA's file ends, once all who read it gave the same answer."""
    facts = inspect(path, hashed=False)
    format_text(facts)
    lora, refusal = opened(path)
    if facts["kind"] == "LoRA":
        assert facts.get("problem") == refusal, (facts, refusal)
    if lora is None:
        return "refused"
    for item in families.FAMILIES:
        try:
            text_encoder_parts(lora, item)
        except LoraError:
            continue
    try:
        for module in lora.modules.values():
            _read_module(lora, module)
    except NonFiniteError:
        return "no numbers"
    return "read"


def _read_module(lora: LoraFile, module: LoraModule) -> None:
    for leaf, part in DIFFERENCES.items():
        if part in module.keys:
            assert lora.difference(module, leaf).value.numel()
    if module.low_rank:
        pair = lora.pair(module)
        product = pair.up.double().flatten(1) @ pair.down.double().flatten(1)
        assert math.isfinite(pair.scale) and product.ndim == 2


def lora_files(rng: random.Random, folder: Path) -> list[Act]:
    """A LoRA of a few modules."""
    path = folder / "x.safetensors"
    path.write_bytes(made_up(rng))
    return [lambda: read_as_lora(path)]


@cache
def checkpoint_header(name: str) -> dict:
    """The header of a family's tiny checkpoint, dtype and shape by name."""
    return {key: ["F16", list(v.shape)] for key, v in corpus.state_of(name).items()}


def header_files(rng: random.Random, folder: Path) -> list[Act]:
    """A checkpoint's header with tensors missing, renamed, misshaped or otherwise stored."""
    tensors = dict(checkpoint_header(rng.choice(tuple(corpus.MAKERS))))
    if rng.random() < 0.3:  # few, so that detection itself is tried
        tensors = dict(rng.sample(list(tensors.items()), rng.randint(0, 12)))
    for _ in range(rng.randint(0, 3)):
        key = rng.choice([*tensors, "v_pred"])
        _damage(rng, tensors, key)
    table, end = {}, 0
    for key, (dtype, shape) in tensors.items():
        size = -(-math.prod(shape) * DTYPE_BITS[dtype] // 8) if dtype in DTYPE_BITS else 8
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if rng.random() < 0.1 and table:
        table[rng.choice(list(table))] = rng.choice((value(rng), {"dtype": "F16"}))
    if rng.random() < 0.2:
        table["__metadata__"] = {rng.choice(("modelspec.prediction_type", "a")): text(rng, 4)}
    path = folder / "x.safetensors"
    content = with_header(table)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + min(end, 2**40) + rng.choice((0, 0, 0, 0, 8, -8, -len(content))
                                                                  ))  # fmt: skip
    return [lambda: _one_answer(path)]


def _damage(rng: random.Random, tensors: dict, key: str) -> None:
    dtype, shape = tensors.get(key, ["F16", []])
    kind = rng.randrange(6)
    if kind == 0:
        tensors.pop(key, None)
    elif kind == 1:
        tensors[key] = [dtype, rng.choices((0, 1, 2, 4, 9, 320), k=rng.randint(0, 5))]
    elif kind == 2:
        tensors[key] = [rng.choice((*DTYPE_BITS, "F17")), shape]
    elif kind == 3:
        tensors.pop(key, None)
        tensors[rng.choice(("_orig_mod.", "module.", "x.", "model_ema.")) + key] = [dtype, shape]
    elif kind == 4 and shape:
        place = rng.randrange(len(shape))
        tensors[key] = [dtype, [*shape[:place], shape[place] + 1, *shape[place + 1 :]]]
    else:
        ending = rng.choice((".weight_scale", ".absmax", ".lora_up.weight", ".cond_proj.weight"))
        tensors[key + ending] = ["F16", [1]]


def _one_answer(path: Path) -> str:
    """How a checkpoint ends, once `inspect` and the check before a run gave the same answer."""
    try:
        facts = inspect(path, hashed=False)
        format_text(facts)
        said = facts.get("problem")
    except CheckpointError as error:
        said = str(error)
    refusal = None
    try:
        check_own_parts(path)
    except CheckpointError as error:
        refusal = str(error)
    assert said == refusal or "is a LoRA" in str(refusal), (said, refusal)
    return "refused" if refusal else "read"


CONFIGS = {
    "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "beta_end": 0.012},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


def folder_configs(rng: random.Random, folder: Path) -> list[Act]:
    """A diffusers folder with an entry of one of its configs changed."""
    name = rng.choice([name for name in corpus.MAKERS if "folder" in corpus.layouts_of(name)])
    path = folder / name
    if not path.is_dir():
        corpus.save_folder(path, corpus.tiny(name))
        scheduler = CONFIGS["scheduler" if name in ("sd1", "sdxl") else "flow"]
        corpus_refused.config("scheduler", **scheduler)(path)
    place = rng.choice([*sorted(path.glob("*/*.json")), path / "model_index.json"])
    whole = place.read_text()

    def act() -> None:
        try:
            content = json.dumps(changed(rng, json.loads(whole)))
            place.write_bytes(content.encode("utf-8", "surrogatepass"))
            check_files(path, {})
        finally:
            place.write_text(whole)

    return [act]


def metadata_entries(rng: random.Random, folder: Path) -> list[Act]:
    """Metadata of LoRAs and checkpoints."""
    keys = ("modelspec.prediction_type", "ss_v_parameterization", "ss_base_model_version",
            "lora_adapter_metadata", "dpdmd.teacher", "dpdmd.settings", METADATA_KEY,
            "ss_network_args", "sshs_model_hash", "parameterization")  # fmt: skip
    found = {rng.choice(keys): _entry(rng) for _ in range(rng.randint(1, 3))}
    shape = {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}
    stem = rng.choice(STEMS[:4])
    other = {"dtype": "F16", "shape": [4, 2], "data_offsets": [16, 32]}
    table = {f"{stem}.lora_A.weight": shape, f"{stem}.lora_B.weight": other}
    path = folder / "x.safetensors"
    path.write_bytes(with_header(table | {"__metadata__": found}, bytes(32)))
    return [
        lambda: read_as_lora(path),
        lambda: settings_of_lora(path),
        lambda: families.stated_settings(path),
        lambda: read_header(path),
    ]


def _entry(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return text(rng, 6)
    if kind == 1:
        return _json(changed(rng, _recipe()))
    if kind == 2:
        return _json(changed(rng, DistillConfig().to_dict()))
    return _json(value(rng))


def _json(found: object) -> str:
    return json.dumps(found)[:200_000]


@cache
def _recipe() -> dict:
    return json.loads(default_recipe("sd1", "eps").to_json())


def recipes(rng: random.Random, folder: Path) -> list[Act]:
    """A recipe with entries changed."""
    source = _json(changed(rng, _recipe()))
    return [lambda: usage_hint(Recipe.from_json(source)), lambda: Recipe.from_json(text(rng, 6))]


# Texts, settings and runs


def prompts(rng: random.Random, folder: Path) -> list[Act]:
    """Texts as prompts."""
    given, seed = text(rng, 40), rng.random()
    return [
        lambda: parse_prompts(given, "p.txt"),
        lambda: parse_line(given),
        lambda: expand(given, random.Random(seed)),
        lambda: parse_seeds(given),
    ]


def image_texts(rng: random.Random, folder: Path) -> list[Act]:
    """Texts of images: infotext, graphs, other programs' JSON."""
    given = text(rng, 40)
    fields = {rng.choice(FIELDS): rng.choice((given, _json(value(rng))))}
    return [lambda: infotext_prompts(given), lambda: image_prompt(fields)]


def names(rng: random.Random, folder: Path) -> list[Act]:
    """Texts as names and paths, by the rules of either system."""
    name = text(rng, 6) or "CON"
    return [
        lambda: typed_path(name, posixpath),
        lambda: typed_path(name, ntpath),
        lambda: check_name(name),
        lambda: check_name(name, ntpath),
        lambda: lora_file(folder, name),
    ]


@cache
def _request() -> dict:
    model = ModelFiles(checkpoint="a")
    return DistillRequest(model=model, config=DistillConfig(), output="b").to_dict()


def settings(rng: random.Random, folder: Path) -> list[Act]:
    """Settings and requests with entries changed."""
    config = changed(rng, DistillConfig().to_dict())
    shared = {"kind": "dpdmd.settings", "version": 1, "config": config}
    request = changed(rng, _request())
    return [
        lambda: DistillConfig.from_dict(config).validate(),
        lambda: import_settings(_json(shared)),
        lambda: import_settings("{" + text(rng, 6)),
        lambda: DistillRequest.from_dict(request),
    ]


STATES = ("settings.json", "progress.json", "result.json", "lock.json", "taken.json", "exit.json",
          "task.json", "job.json", "child.json", "queued", "metrics.jsonl", "evaluations.jsonl",
          "state/latest.json", "log.txt")  # fmt: skip


def state_files(rng: random.Random, folder: Path) -> list[Act]:
    """A run's folder whose files hold anything."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    (run / "state").mkdir(parents=True)
    asked = _request() | {"version": SETTINGS_VERSION}
    (run / "settings.json").write_text(json.dumps(asked))
    for name in rng.sample(STATES, rng.randint(1, 4)):
        whole = {"step": 1, "steps": 8, "status": "running", "updated_at": 1.0, "pid": 1}
        kinds = (
            _json(changed(rng, asked if name == "settings.json" else whole)),
            _json(value(rng)),
            text(rng, 8),
            "[" * 5000,
        )
        content = rng.choice(kinds) + rng.choice(("", "\n", "{"))
        (run / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    return [
        lambda: read_job(run),
        lambda: diagnose(RunDirectory(run)),
        lambda: RunDirectory.open(run).settings(),
        lambda: RunDirectory(run).metrics(),
        lambda: RunDirectory(run).latest_state(),
    ]


KINDS: dict[str, Callable[[random.Random, Path], list[Act]]] = {
    "headers": header_files,
    "LoRA files": lora_files,
    "folder configs": folder_configs,
    "metadata": metadata_entries,
    "recipes": recipes,
    "prompts": prompts,
    "image texts": image_texts,
    "names": names,
    "settings": settings,
    "run files": state_files,
}


@dataclass
class Found:
    """What became of a kind's inputs.

    Attributes:
        answered: readings that ended in an answer.
        refused: those that ended in one of our errors.
        foreign: (seed, the last line of the traceback) of those that ended in another.
        slowest: (seconds, seed) of the input that took longest.
    """

    inputs: int = 0
    answered: int = 0
    refused: int = 0
    foreign: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)


def run(kind: str, seeds: Iterable[int], folder: Path, seconds: float = math.inf) -> Found:
    """Give the inputs of these seeds to their readers, for so many seconds at most."""
    found, begin = Found(), time.monotonic()
    for seed in seeds:
        if time.monotonic() - begin > seconds:
            break
        acts = KINDS[kind](random.Random(f"{kind} {seed}"), folder)
        found.inputs += 1
        before = time.process_time()
        for act in acts:
            try:
                refused = act() in REFUSALS
                found.refused += refused
                found.answered += not refused
            except DPDMDError:
                found.refused += 1
            except Exception:  # whatever there is, which is what is searched for
                found.foreign.append((seed, traceback.format_exc(limit=-3)))
        found.slowest = max(found.slowest, (time.process_time() - before, seed))
    return found
