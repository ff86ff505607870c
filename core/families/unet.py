"""What SD 1.x and SDXL share: reading a UNet's dimensions off LDM tensors, and the two name tables.

LDM numbers its blocks through (`input_blocks.4.1`), diffusers nests them by level
(`down_blocks.1.attentions.0`); inside an attention block both use the same names.
"""

from collections.abc import Callable, Iterator

from ..errors import UnsupportedModelError
from .base import Config, LoraTargets, Tensors, TensorSource, count_blocks
from .parts.config_values import (
    COUNT,
    WHOLE,
    WHOLES,
    Rule,
    all_of,
    are_counts,
    are_whole,
    check_config,
    is_count,
    is_whole,
    number,
    one_of,
    refuse_entries,
)

INPUT_LAYER = "input_blocks.0.0.weight"
FOLDER_CLASS = "UNet2DConditionModel"
LATENT_CHANNELS = 4

TOP_LEVEL = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION_TARGETS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
                     "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
                     "ff.net.0.proj", "ff.net.2")  # fmt: skip
NORM_GROUPS = 32
REGULAR = "Supported are UNets in the regular SD 1.x or SDXL block layout."
FURTHER_INPUTS = (
    (
        "time_cond_proj_dim",
        "a few-step model already, a latent consistency model (LCM) with guidance as an input",
    ),
    ("class_embed_type", "a UNet with class labels or images as a further input"),
    ("num_class_embeds", "a UNet with class labels as a further input"),
    ("encoder_hid_dim", "Kolors or another UNet with a projection of its text input"),
    ("encoder_hid_dim_type", "a UNet with a projection of its text or image input"),
    ("num_attention_heads", "a UNet with another number of heads"),
    ("only_cross_attention", "a UNet without self-attention"),
    ("dual_cross_attention", "a UNet with two kinds of attention to the text"),
    ("mid_block_only_cross_attention", "a UNet without self-attention in the middle"),
    ("cross_attention_norm", "a UNet with a norm of its text input"),
    ("class_embeddings_concat", "a UNet with class labels as a further input"),
    ("center_input_sample", "a UNet whose input is scaled"),
    ("time_embedding_dim", "a UNet with another embedding of time"),
    ("time_embedding_act_fn", "a UNet with another embedding of time"),
    ("timestep_post_act", "a UNet with another embedding of time"),
    ("resnet_skip_time_act", "a UNet with another embedding of time"),
)
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
MIDDLE = "UNetMidBlock2DCrossAttn"
FOLDER_RULES = {
    "cross_attention_dim": WHOLE,
    "block_out_channels": WHOLES,
    "down_block_types": Rule(all_of(*DOWN), f"a list of {' and '.join(DOWN)}", required=True),
    "up_block_types": Rule(all_of(*UP), f"a list of {' and '.join(UP)}", required=True),
    "mid_block_type": Rule(one_of(None, MIDDLE), MIDDLE),
    "layers_per_block": COUNT,
    "transformer_layers_per_block": Rule(
        lambda value: is_count(value) or are_counts(value), "a whole number, or one for each level"
    ),
    "attention_head_dim": Rule(
        lambda value: is_whole(value) or are_whole(value), "a whole number, or one for each level"
    ),
    "in_channels": Rule(one_of(None, LATENT_CHANNELS), "4"),
    "out_channels": Rule(one_of(LATENT_CHANNELS), "4"),
    "use_linear_projection": Rule(one_of(True, False), "true or false"),
    "upcast_attention": Rule(one_of(None, True, False), "true or false"),
    "norm_num_groups": Rule(one_of(NORM_GROUPS), "32"),
    "norm_eps": Rule(number(1e-5), "1e-05"),
    "act_fn": Rule(one_of("silu", "swish"), "'silu'"),
    "flip_sin_to_cos": Rule(one_of(True), "true"),
    "freq_shift": Rule(number(0), "0"),
    "downsample_padding": Rule(one_of(1), "1"),
    "mid_block_scale_factor": Rule(number(1), "1"),
    "resnet_out_scale_factor": Rule(number(1), "1.0"),
    "resnet_time_scale_shift": Rule(one_of("default"), "'default'"),
    "time_embedding_type": Rule(one_of(None, "positional"), "'positional'"),
    "attention_type": Rule(one_of(None, "default"), "'default'"),
    "conv_in_kernel": Rule(one_of(3), "3"),
    "conv_out_kernel": Rule(one_of(3), "3"),
    "dropout": Rule(number(0), "0.0"),
}


def is_unet(tensors: Tensors) -> bool:
    """Whether these are the tensors of an LDM UNet with cross-attention."""
    return INPUT_LAYER in tensors and context_width(tensors) is not None


def is_unet_folder(config: Config, pipeline: str) -> bool:
    """Whether a diffusers folder holds a UNet conditioned on text alone.

    Args:
        config: the denoiser's config.json.
        pipeline: the class that model_index.json names.
    """
    return (
        config.get("_class_name") == FOLDER_CLASS
        and config.get("in_channels") in (None, LATENT_CHANNELS)
        and "Inpaint" not in pipeline
    )


def check_folder(config: Config, label: str) -> None:
    """Refuse a UNet of a diffusers folder that takes further inputs or is built in another way.

    Raises:
        UnsupportedModelError: names the entry of config.json and what was expected.
    """
    refuse_entries(config, FURTHER_INPUTS, label)
    depths = config.get("transformer_layers_per_block", 1)
    nested = isinstance(depths, list) and any(isinstance(depth, list) for depth in depths)
    if nested or config.get("reverse_transformer_layers_per_block") is not None:
        raise UnsupportedModelError(
            f"{label}: the UNet's transformer depths are {depths} down and "
            f"{config.get('reverse_transformer_layers_per_block')} up: a pruned or altered variant "
            f"(as SSD-1B). {REGULAR}"
        )
    check_config(config, FOLDER_RULES, label)
    channels = _list(config["block_out_channels"])
    down, up = _list(config["down_block_types"]), _list(config["up_block_types"])
    heads = config.get("attention_head_dim", 8)
    fits = (
        len(down) == len(up) == len(channels)
        and ["CrossAttn" in name for name in down] == ["CrossAttn" in name for name in up[::-1]]
        and (is_whole(depths) or len(_list(depths)) == len(channels))
        and all(width % NORM_GROUPS == 0 for width in channels)
    )
    if not fits:
        raise UnsupportedModelError(
            f"{label}: block_out_channels {channels}, down_block_types {down}, up_block_types {up} "
            f"and transformer_layers_per_block {depths} do not go together. {REGULAR}"
        )
    counts = [heads] * len(channels) if is_whole(heads) else _list(heads)
    divides = all(width % count == 0 for width, count in zip(channels, counts, strict=False))
    if len(counts) != len(channels) or not divides:
        raise UnsupportedModelError(
            f"{label}: attention_head_dim {heads} (heads of each level) does not divide "
            f"block_out_channels {channels}. {REGULAR}"
        )


def context_width(tensors: Tensors) -> int | None:
    """Width of the text context the cross-attention reads."""
    for name, info in tensors.items():
        if name.endswith("transformer_blocks.0.attn2.to_k.weight") and len(info.shape) == 2:
            return info.shape[1]
    return None


def unet_config(
    tensors: Tensors, heads: Callable[[list[int]], int | list[int]], sample_size: int
) -> Config:
    """Arguments of diffusers' UNet2DConditionModel, read off LDM tensors.

    Args:
        tensors: denoiser tensors without prefix.
        heads: number of attention heads from the channels of each level; the only thing that
            shapes do not tell.
        sample_size: latent size the network was made for; informative only.
    """
    levels = _levels(tensors)
    depths = [_depth(tensors, "input_blocks", level) for level in levels]
    channels = [tensors[f"input_blocks.{level[0]}.0.out_layers.3.weight"].shape[0]
                for level in levels]  # fmt: skip
    middle = count_blocks(tensors, "middle_block.1.transformer_blocks.")
    _check_regular(tensors, levels, depths, channels, middle)
    first = next(n for n in tensors if n.endswith("1.proj_in.weight"))
    return {
        "sample_size": sample_size,
        "in_channels": tensors[INPUT_LAYER].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "transformer_layers_per_block": [d or 1 for d in depths[:-1]] + [depths[-1] or middle or 1],
        "attention_head_dim": heads(channels),  # diffusers means the number of heads by this
        "cross_attention_dim": context_width(tensors),
        "use_linear_projection": len(tensors[first].shape) == 2,
        "norm_num_groups": NORM_GROUPS,
    }


def _levels(tensors: Tensors) -> list[list[int]]:
    """Numbers of the input blocks that hold a residual layer, level by level."""
    levels: list[list[int]] = [[]]
    for index in range(1, count_blocks(tensors, "input_blocks.")):
        if f"input_blocks.{index}.0.op.weight" in tensors:
            levels.append([])
        elif f"input_blocks.{index}.0.out_layers.3.weight" in tensors:
            levels[-1].append(index)
    if not all(levels):
        raise UnsupportedModelError(
            "The UNet's input blocks are incomplete: a level without residual layers. The file is "
            "damaged, or of a variant that is not supported (SD 1.x and SDXL are)."
        )
    return levels


def _depth(tensors: Tensors, side: str, blocks: list[int]) -> int:
    depths = {count_blocks(tensors, f"{side}.{i}.1.transformer_blocks.") for i in blocks}
    return depths.pop() if len(depths) == 1 else -1


def _check_regular(
    tensors: Tensors,
    levels: list[list[int]],
    depths: list[int],
    channels: list[int],
    middle: int,
) -> None:
    layers = len(levels[0])
    outputs = count_blocks(tensors, "output_blocks.")
    up_levels = [list(range(i, i + layers + 1)) for i in range(0, outputs, layers + 1)]
    up_depths = [_depth(tensors, "output_blocks", level) for level in reversed(up_levels)]
    regular = (
        all(len(level) == layers for level in levels)
        and outputs == len(levels) * (layers + 1)
        and -1 not in depths
        and up_depths == depths
        and (not middle or not depths[-1] or middle == depths[-1])
        and all(width % NORM_GROUPS == 0 for width in channels)
    )
    if not regular:
        raise UnsupportedModelError(
            f"This UNet has {layers} residual layers a level, transformer depths {depths} down, "
            f"{up_depths} up and {middle} in the middle: a pruned or altered variant (as SSD-1B or "
            "KOALA). Supported are UNets in the regular SD 1.x or SDXL block layout."
        )


def blocks(config: Config) -> Iterator[tuple[str, str, str, int]]:
    """(kind, diffusers name, LDM name, transformer depth) of every block.

    Kind is "resnet", "attention", "downsampler" or "upsampler"; the depth is 0 but for attention.
    """
    layers = int(str(config["layers_per_block"]))
    depth = config.get("transformer_layers_per_block") or 1
    levels = len(_list(config["block_out_channels"]))
    depths = [depth] * levels if isinstance(depth, int) else [int(d) for d in _list(depth)]
    down = [str(name) for name in _list(config["down_block_types"])]
    up = [str(name) for name in _list(config["up_block_types"])]
    index = 1
    for level, name in enumerate(down):
        for layer in range(layers):
            yield "resnet", f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{index}.0", 0
            if "CrossAttn" in name:
                diffusers = f"down_blocks.{level}.attentions.{layer}"
                yield "attention", diffusers, f"input_blocks.{index}.1", depths[level]
            index += 1
        if level < len(down) - 1:
            diffusers = f"down_blocks.{level}.downsamplers.0.conv"
            yield "downsampler", diffusers, f"input_blocks.{index}.0.op", 0
            index += 1
    if config.get("mid_block_type", "") is not None:
        yield "resnet", "mid_block.resnets.0", "middle_block.0", 0
        yield "attention", "mid_block.attentions.0", "middle_block.1", depths[-1]
        yield "resnet", "mid_block.resnets.1", "middle_block.2", 0
    index = 0
    for level, name in enumerate(up):
        attends = "CrossAttn" in name
        for layer in range(layers + 1):
            yield "resnet", f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{index}.0", 0
            if attends:
                diffusers = f"up_blocks.{level}.attentions.{layer}"
                yield "attention", diffusers, f"output_blocks.{index}.1", depths[-1 - level]
            index += 1
        if level < len(up) - 1:
            ldm = f"output_blocks.{index - 1}.{2 if attends else 1}.conv"
            yield "upsampler", f"up_blocks.{level}.upsamplers.0.conv", ldm, 0


def ldm_name(module_name: str, config: Config) -> str:
    """The LDM name of a diffusers module: down_blocks.0.resnets.0.conv1 -> input_blocks.1.0..."""
    if module_name in TOP_LEVEL:
        return TOP_LEVEL[module_name]
    for kind, block, ldm, _ in blocks(config):
        if module_name == block:
            return ldm
        if module_name.startswith(block + "."):
            inner = module_name[len(block) + 1 :]
            return f"{ldm}.{RESNET[inner] if kind == 'resnet' else inner}"
    raise KeyError(module_name)


def tensor_source(parameter_name: str, config: Config) -> TensorSource:
    """Where a UNet parameter (diffusers name) lies in an LDM file, without the prefix."""
    module, _, leaf = parameter_name.rpartition(".")
    return TensorSource(f"{ldm_name(module, config)}.{leaf}")


def lora_modules(config: Config, targets: LoraTargets) -> list[str]:
    """Diffusers names of the modules that get LoRA.

    "attention": the linear layers of every transformer and the projections around it; "full" adds
    the convolutions and the timestep projection of the residual blocks and the resamplers.
    """
    names: list[str] = []
    for kind, block, _, depth in blocks(config):
        if kind == "attention":
            names += [f"{block}.proj_in", f"{block}.proj_out"]
            names += [f"{block}.transformer_blocks.{i}.{target}"
                      for i in range(depth) for target in ATTENTION_TARGETS]  # fmt: skip
        elif targets == "full" and kind == "resnet":
            names += [f"{block}.{name}" for name in ("conv1", "time_emb_proj", "conv2")]
            names += [f"{block}.conv_shortcut"] if _changes_width(block, config) else []
        elif targets == "full":
            names.append(block)
    return names


def parameters(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter of the UNet and its shape, by diffusers' name."""
    channels = [int(width) for width in _list(config["block_out_channels"])]
    heads = config.get("attention_head_dim", 8)
    heads = [int(str(heads))] * len(channels) if isinstance(heads, int) else _list(heads)
    base, time = channels[0], 4 * channels[0]
    yield from _convolution("conv_in", LATENT_CHANNELS, base, 3).items()
    yield from _linear("time_embedding.linear_1", base, time).items()
    yield from _linear("time_embedding.linear_2", time, time).items()
    if config.get("addition_embed_type") is not None:
        inputs = int(str(config["projection_class_embeddings_input_dim"]))
        yield from _linear("add_embedding.linear_1", inputs, time).items()
        yield from _linear("add_embedding.linear_2", time, time).items()
    for kind, block, _, depth in blocks(config):
        level = _level(block, len(channels))
        width = channels[level]
        if kind == "resnet":
            yield from _resnet(block, _inputs(block, channels, config), width, time).items()
        elif kind == "attention":
            inner = width // heads[level] * heads[level]
            yield from _attention(block, (width, inner, depth), config).items()
        else:
            yield from _convolution(block, width, width, 3).items()
    yield from _norm("conv_norm_out", base).items()
    yield from _convolution("conv_out", base, LATENT_CHANNELS, 3).items()


def _level(block: str, levels: int) -> int:
    """The level whose channels a block has at its end, counted from the finest."""
    side, number = block.split(".")[:2]
    if side == "mid_block":
        return levels - 1
    return levels - 1 - int(number) if side == "up_blocks" else int(number)


def _inputs(resnet: str, channels: list[int], config: Config) -> int:
    """Channels that a residual block reads; on the way up those of its skip connection, too."""
    side, number, _, layer = [*resnet.split("."), "0", "0"][:4]
    level = _level(resnet, len(channels))
    if side == "mid_block":
        return channels[-1]
    if side == "down_blocks":
        return channels[max(level - 1, 0)] if layer == "0" else channels[level]
    before = channels[min(level + 1, len(channels) - 1)] if layer == "0" else channels[level]
    last = int(layer) == int(str(config["layers_per_block"]))
    return before + channels[max(level - 1, 0) if last else level]


def _resnet(block: str, inputs: int, width: int, time: int) -> dict[str, tuple[int, ...]]:
    found = _norm(f"{block}.norm1", inputs) | _convolution(f"{block}.conv1", inputs, width, 3)
    found |= _linear(f"{block}.time_emb_proj", time, width) | _norm(f"{block}.norm2", width)
    found |= _convolution(f"{block}.conv2", width, width, 3)
    if inputs != width:
        found |= _convolution(f"{block}.conv_shortcut", inputs, width, 1)
    return found


def _attention(
    block: str, sizes: tuple[int, int, int], config: Config
) -> dict[str, tuple[int, ...]]:
    """Parameters of a transformer; `sizes`: channels, width of its heads together, depth."""
    width, inner, depth = sizes
    context = int(str(config["cross_attention_dim"]))
    found = _norm(f"{block}.norm", width)
    for name, inputs, outputs in ("proj_in", width, inner), ("proj_out", inner, width):
        plain = bool(config.get("use_linear_projection"))
        found |= (
            _linear(f"{block}.{name}", inputs, outputs)
            if plain
            else _convolution(f"{block}.{name}", inputs, outputs, 1)
        )
    for index in range(depth):
        layer = f"{block}.transformer_blocks.{index}"
        for name, read in ("attn1", inner), ("attn2", context):
            found[f"{layer}.{name}.to_q.weight"] = (inner, inner)
            found[f"{layer}.{name}.to_k.weight"] = (inner, read)
            found[f"{layer}.{name}.to_v.weight"] = (inner, read)
            found |= _linear(f"{layer}.{name}.to_out.0", inner, inner)
        for name in ("norm1", "norm2", "norm3"):
            found |= _norm(f"{layer}.{name}", inner)
        found |= _linear(f"{layer}.ff.net.0.proj", inner, 8 * inner)
        found |= _linear(f"{layer}.ff.net.2", 4 * inner, inner)
    return found


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _convolution(name: str, inputs: int, outputs: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _changes_width(resnet: str, config: Config) -> bool:
    """Whether a residual block has other channels at its end than at its start."""
    side, level, _, layer = [*resnet.split("."), "", ""][:4]
    if side == "up_blocks":
        return True  # the skip connection is concatenated
    channels = _list(config["block_out_channels"])
    return (
        side == "down_blocks"
        and layer == "0"
        and int(level) > 0
        and channels[int(level)] != channels[int(level) - 1]
    )


def _list(value: object) -> list:
    assert isinstance(value, list | tuple), value
    return list(value)
