"""workflow.json: a graph of ComfyUI's own nodes that samples with the LoRA as it was trained.

It opens by drag and drop in old and new versions.
"""

from __future__ import annotations

from ...core.families import family
from .canvas import Graph, Slot
from .cards import settings_line
from .describe import clip_skip, limits
from .facts import LORA_STRENGTH, PackageFacts


def workflow(facts: PackageFacts) -> str:
    """The graph as JSON."""
    graph = Graph()
    model, clip, vae = _loaders(graph, facts)
    model, clip = _loras(graph, facts, model, clip)
    _sampling(graph, facts, model, clip, vae)
    text = "\n".join([f"{facts.title}: {settings_line(facts)}.", *limits(facts)])
    graph.add("Note", (0, 2), [text])
    return graph.to_json()


def _loaders(graph: Graph, facts: PackageFacts) -> tuple[Slot, Slot, Slot]:
    checkpoint = facts.checkpoint
    name = checkpoint.file
    if not name.lower().endswith(".safetensors"):  # a diffusers folder has no file of its own
        name += ".safetensors"
    known, encoders = family(facts.family), list(checkpoint.text_encoders)
    bare = bool(encoders) and known.text.encoders[0] not in checkpoint.detection.text_encoders
    kind = known.sharing.bare_loader if bare else "CheckpointLoaderSimple"
    loader = graph.add(kind, (0, 0), [name, "default"] if kind == "UNETLoader" else [name])
    clip, vae = (loader, 1), (loader, 2)
    if len(encoders) == 3:
        clip = (graph.add("TripleCLIPLoader", (0, 1), encoders), 0)
    elif encoders:
        kind = "DualCLIPLoader" if len(encoders) == 2 else "CLIPLoader"
        clip = (graph.add(kind, (0, 1), [*encoders, _clip_type(facts)]), 0)
    if vae_file := checkpoint.vae or (known.sharing.published_vae if bare else ""):
        vae = (graph.add("VAELoader", (0, 1.5), [vae_file]), 0)
    return (loader, 0), clip, vae


def _clip_type(facts: PackageFacts) -> str:
    """What the loaders of one and two encoders have to be told."""
    known = family(facts.family).sharing.clip_types
    return known[min(len(facts.checkpoint.text_encoders), len(known)) - 1]


def _loras(graph: Graph, facts: PackageFacts, model: Slot, clip: Slot) -> tuple[Slot, Slot]:
    """Style LoRAs, the few-step LoRA, then what the recipe says of the model's schedule."""
    recipe, row = facts.recipe, 0.0
    for name, strength in facts.with_loras:
        node = graph.add("LoraLoader", (1, row), [name, strength, strength], model=model, clip=clip)
        model, clip, row = (node, 0), (node, 1), row + 1
    node = graph.add("LoraLoaderModelOnly", (1, row), [facts.file, LORA_STRENGTH], model=model)
    model = (node, 0)
    if recipe.shift is not None:
        node = family(facts.family).sharing.shift_node
        model = (graph.add(node, (1, row + 1), [recipe.shift], model=model), 0)
    if recipe.prediction == "v":
        values = ["v_prediction", recipe.zero_terminal_snr]
        model = (graph.add("ModelSamplingDiscrete", (1, row + 1), values, model=model), 0)
    if clip_skip(recipe) > 1:
        last = [-clip_skip(recipe)]
        clip = (graph.add("CLIPSetLastLayer", (1, row + 2), last, clip=clip), 0)
    return model, clip


def _sampling(graph: Graph, facts: PackageFacts, model: Slot, clip: Slot, vae: Slot) -> None:
    recipe, (width, height) = facts.recipe, facts.size
    first = facts.images[0] if facts.images else None
    prompt = ", ".join(filter(None, [*facts.trigger_words, first.prompt if first else ""]))
    prompt = prompt.replace("{", "\\{").replace("}", "\\}")  # the canvas would choose in braces
    positive = graph.add("CLIPTextEncode", (2, 0), [prompt], clip=clip)
    negative = graph.add("CLIPTextEncode", (2, 1), [""], clip=clip)
    latent = graph.add(family(facts.family).sharing.empty_latent, (2, 2), [width, height, 1])
    seed = first.seed if first else 0
    sampler = graph.add(
        "KSampler",
        (3, 0),
        [seed, "randomize", recipe.num_steps, recipe.guidance_scale, "euler", "simple", 1.0],
        model=model,
        positive=(positive, 0),
        negative=(negative, 0),
        latent_image=(latent, 0),
    )
    image = graph.add("VAEDecode", (4, 0), [], samples=(sampler, 0), vae=vae)
    graph.add("SaveImage", (4, 1), [facts.name], images=(image, 0))
