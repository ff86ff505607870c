"""What a model family states about itself, as plain data and functions; no torch.

A network is held under diffusers' module names. A checkpoint file uses the names of the code it was
first trained with (LDM, or Stability's MMDiT). The one table that connects the two,
`tensor_source`, serves loading (which tensor fills which parameter) and saving (what hosts call a
LoRA's module).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import CheckpointError
from ..files.tensor_file import TensorInfo

Change = Literal["none", "swap_halves", "transpose", "squeeze"]
LoraTargets = Literal["attention", "full"]
Tensors = Mapping[str, TensorInfo]
Config = dict[str, object]

DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "model.model.", "")
EQUAL_THIRDS = (1, 1, 1)
# arXiv:2305.08891, section 3.4: guidance from pure noise on overexposes; .7 worked best there.
ZERO_SNR_RESCALE = 0.7
# Names in a network's config that say how wide its text input is, for every family so far.
USUAL_WIDTHS = ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim")


@dataclass(frozen=True)
class TensorSource:
    """Where the value of one network parameter lies in a checkpoint.

    `part` picks some of the rows of a fused tensor (q, k and v, say), whose parts have rows in the
    ratio of `shares`. `change` says what has to be done to the stored tensor: "swap_halves"
    exchanges the two halves of its rows (shift, scale against scale, shift), "transpose" flips a
    matrix, "squeeze" drops the 1x1 of a convolution.
    """

    key: str
    part: int | None = None
    change: Change = "none"
    shares: tuple[int, ...] = EQUAL_THIRDS

    def stored_rows(self, rows: int) -> int:
        """Rows of the whole stored tensor, if the parameter has `rows`."""
        return rows if self.part is None else rows * sum(self.shares) // self.shares[self.part]

    def first_row(self, rows: int) -> int:
        """The row of the stored tensor at which a parameter of `rows` begins."""
        if self.part is None:
            return 0
        return rows * sum(self.shares[: self.part]) // self.shares[self.part]


@dataclass(frozen=True)
class LoraKey:
    """The name hosts give to a module in a LoRA file, without `.lora_down.weight` and the like.

    `part` is the module's number among those that one fused projection of that name consists of,
    whose rows are in the ratio of `shares`.
    """

    name: str
    part: int | None = None
    shares: tuple[int, ...] = EQUAL_THIRDS


@dataclass(frozen=True)
class VaeFacts:
    """How latents relate to images: latent = (vae_latent - shift) * scaling.

    Both factors are one number, or one for each channel (shift the mean, scaling 1 / deviation).
    `kind` is what the VAE is: that of latent diffusion, or Wan's, which is made for videos.
    """

    scaling_factor: float | tuple[float, ...]
    shift_factor: float | tuple[float, ...]
    rgb_factors: tuple[tuple[float, float, float], ...]
    """Linear latent-to-RGB preview, a row per channel; RGB in [-1, 1]."""
    rgb_bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What the preview adds to that."""
    kind: Literal["kl", "wan"] = "kl"


@dataclass(frozen=True)
class Detection:
    """What the names and shapes of a checkpoint's tensors say about it.

    `stated` is what a checkpoint says of itself in its metadata (`stated.py`): the guidance and
    steps it was made for, and the kind of text encoder that it brings. Empty for most. `notes` are
    what a user should know about how it is taken.
    """

    family: str
    title: str
    prediction: Literal["eps", "v", "flow"]
    latent_channels: int
    denoiser_prefix: str
    resolution: int
    resolution_multiple: int
    zero_terminal_snr: bool = False
    shift: float | None = None
    """Of a flow, as its files state it; None is the family's."""
    text_encoders: tuple[str, ...] = ()
    vae: Literal["kl", "wan", "tiny"] | None = None
    max_resolution: int | None = None
    """Longest side its position table allows (SD3), or None."""
    folder: bool = False
    """A diffusers folder instead of a single file."""
    stated: Mapping[str, object] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    @property
    def guidance_rescale(self) -> float:
        """How guided predictions of such a model are rescaled when the user names nothing."""
        return ZERO_SNR_RESCALE if self.zero_terminal_snr else 0.0

    @property
    def has_vae(self) -> bool:
        """Whether the checkpoint brings a VAE."""
        return self.vae is not None


@dataclass(frozen=True)
class DetectionFacts:
    """How a family is recognised, and what tells its variants apart.

    Attributes:
        matches: whether these denoiser tensors (names without prefix) are of this family.
        describe: fields of Detection read off (denoiser tensors, all tensors).
        input_layer: the denoiser's tensor whose second axis is the latent's channels, unless
            `describe` says how many these are.
        matches_folder: the same as `matches`, by (denoiser's config, name of the pipeline).
        describe_folder: the same as `describe`, by the denoiser's config.
        check_folder: refuses a denoiser's config with values that are not handled, by (config,
            what to call its file).
    """

    matches: Callable[[Tensors], bool]
    describe: Callable[[Tensors, Tensors], dict[str, object]]
    input_layer: str
    matches_folder: Callable[[Config, str], bool] = lambda config, pipeline: False
    describe_folder: Callable[[Config], dict[str, object]] = lambda config: {}
    check_folder: Callable[[Config, str], None] = lambda config, label: None


@dataclass(frozen=True)
class LayoutFacts:
    """How the denoiser lies in files.

    Attributes:
        network_config: arguments of the diffusers network, every dimension read off the tensors.
        tensor_source: where a network parameter (diffusers name) lies in a single file, without
            prefix.
        denoiser_folder: its sub-folder in a diffusers folder.
        denoiser_title: what messages call it.
        parameters: every network parameter (diffusers name) and its shape, by the network's
            config; without it a tensor that is missing comes out when the network is built.
    """

    network_config: Callable[[Tensors], Config]
    tensor_source: Callable[[str, Config], TensorSource]
    denoiser_folder: str
    denoiser_title: str
    parameters: Callable[[Config], Iterable[tuple[str, tuple[int, ...]]]] = lambda config: ()


@dataclass(frozen=True)
class SamplingFacts:
    """How the family's models are sampled.

    Attributes:
        schedule: of the usual prediction; a model that predicts "flow" has the flow schedule.
        predictions: what they may predict; the first is usual.
        flow_shift: shift of the flow schedule; of a VP family, that of its relatives trained as
            flows, if their files name none.
        guidance_scale: teacher guidance when the user names none.
        resolution: side in pixels that they are made for.
    """

    schedule: Literal["vp", "flow"]
    predictions: tuple[str, ...]
    guidance_scale: float
    resolution: int
    resolution_multiple: int
    flow_shift: float = 3.0


@dataclass(frozen=True)
class EncoderGroup:
    """Text encoders whose tokens stand side by side, so that their widths add up.

    Attributes:
        padded: whether zeros fill them up to the width of the denoiser's text input; without, the
            widths have to meet it.
        chained: whether each reads instead what the one before it said, so that the denoiser is
            told the last one's tokens alone.
    """

    kinds: tuple[str, ...]
    padded: bool = False
    chained: bool = False


@dataclass(frozen=True)
class TextFacts:
    """Which text encoders a prompt goes through, and what of them the denoiser is told.

    Attributes:
        groups: the encoders; the tokens of one group stand behind those of the one before.
        prefixes: where each encoder lies in a single file; the first prefix found is used.
        context_width: name, in the denoiser's config, of the width of its text input.
        pooled_width: the same of its pooled input; empty where the config does not say.
        pooled_kinds: the encoders whose pooled vectors the denoiser reads, one behind the other.
        pooled_input: how wide they are together, by the denoiser's config, or None.
        needs_all: whether it cannot do without some of them.
        clip_skip: whether the user's clip skip decides which layer of a CLIP is read.
        hidden_layer: where it does not, the layer that is read: 1 the last, 2 the last but one.
        final_norm: whether that layer goes through the final norm.
        repeatable: whether a prompt repeated whole means the same to the denoiser (as for
            cross-attention), so that prompts of different length make one exact batch.
        template: what each prompt is put into before an encoder that is a chat model reads it, "{}"
            for the prompt; empty: none. Brackets are then letters, as in ComfyUI.
        masked: whether the denoiser is told which tokens are padding, which does the same. Without
            either, prompts of different length see each other's padding in one batch.
        published: of encoders that are published apart from the denoiser: their files' names, in
            small letters.
    """

    groups: tuple[EncoderGroup, ...]
    prefixes: Mapping[str, tuple[str, ...]]
    context_width: str
    pooled_width: str = ""
    pooled_kinds: tuple[str, ...] = ()
    pooled_input: Callable[[Config], int | None] = lambda config: None
    needs_all: bool = True
    clip_skip: bool = False
    hidden_layer: int = 2
    final_norm: bool = False
    template: str = ""
    repeatable: bool = False
    masked: bool = False
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The kinds of all encoders, in their order."""
        return tuple(kind for group in self.groups for kind in group.kinds)

    @property
    def width_names(self) -> tuple[str, ...]:
        """Names in the denoiser's config by which one encoding of a prompt differs from another."""
        own = filter(None, (self.context_width, self.pooled_width))
        return tuple(dict.fromkeys((*USUAL_WIDTHS, *own)))


@dataclass(frozen=True)
class LoraFacts:
    """The family's LoRA files, ours and those of other trainers.

    Attributes:
        modules: full diffusers names of the modules that get LoRA.
        module_name: the host's name of a module, with dots, before `lora_unet_` is put in front.
        fused: whether a file holds fused modules (q, k and v in one) as checkpoints do, with the
            scale in `up` and no alpha.
        dotted: whether such a file has the checkpoint's own names after `diffusion_model.`, with
            the endings of PEFT, which hosts and diffusers alike read of newer families.
        split: whether such a file has a module for each part of what checkpoints hold fused.
        peft_prefix: what stands before diffusers' names.
        names: pattern of plain module names that no other family has, or empty.
        context_width: inputs of `attn2_to_k` that no other family has; 0: these do not tell.
        likely_names: pattern of plain module names, asked for when neither of those decided.
        base_model_version: `ss_base_model_version` of our files.
        declared: beginnings of what other trainers write there.
        relatives: other models whose LoRAs have the same names, by how those begin, in small
            letters, which say of themselves what they are for.
        architecture: `modelspec.architecture`, by the denoiser's config.
    """

    modules: Callable[[Config, LoraTargets], list[str]]
    base_model_version: str
    architecture: Callable[[Config], str]
    peft_prefix: str
    module_name: Callable[[str, Config], str] = lambda module, config: module
    fused: bool = False
    dotted: bool = False
    split: bool = False
    names: str = ""
    context_width: int = 0
    likely_names: str = ""
    declared: tuple[str, ...] = ()
    relatives: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseModel:
    """A base model: where it lives, and its licence as sites and people name it.

    Args:
        repository: on Hugging Face; empty where there is none.
        license_name: as a Hugging Face model card writes it.
    """

    repository: str
    license: str
    license_name: str
    license_link: str


@dataclass(frozen=True)
class SharingFacts:
    """What sites and hosts call the family; functions take `Detection.title`.

    Attributes:
        labels: Civitai's labels for such checkpoints that people can select (civitai/civitai,
            basemodel.constants.ts), the suggested one first.
        label_note: what a person should know before choosing one.
        base_model: the model whose licence is inherited.
        base_title: what to call it.
        license_terms: what the licence asks of a LoRA, where that is known; sentences.
        tag: what Hugging Face calls the family.
        pipeline: diffusers' class.
        from_single_file: whether that class is made of a checkpoint's file.
        diffusers_reads_kohya: whether diffusers loads a file with the hosts' key names.
        comfy_reads_peft: whether ComfyUI loads a file with diffusers' key names.
        webui_version: on a card of A1111 and Forge; a version they do not know is never hidden.
        webui_limits: what of them does not know the model; empty, or a sentence after a space.
        clip_types: what ComfyUI's loader of one encoder, and that of two, has to be told.
        empty_latent: ComfyUI's node that an image starts from.
        shift_node: ComfyUI's node that sets a flow's shift; others count time otherwise.
        bare_loader: ComfyUI's node for a file without the text encoders.
        published_vae: the VAE's file as published, where a file without encoders has none either.
    """

    labels: tuple[str, ...]
    label_note: Callable[[str], str]
    base_model: Callable[[str], BaseModel]
    pipeline: str
    clip_types: tuple[str, ...]
    base_title: Callable[[str], str] = lambda title: title
    license_terms: str = ""
    tag: str = "stable-diffusion"
    from_single_file: bool = True
    diffusers_reads_kohya: bool = True
    comfy_reads_peft: bool = False
    webui_version: str = "Unknown"
    webui_limits: Callable[[str], str] = lambda title: ""
    empty_latent: str = "EmptyLatentImage"
    shift_node: str = "ModelSamplingSD3"
    bare_loader: str = "CheckpointLoaderSimple"
    published_vae: str = ""


@dataclass(frozen=True)
class HostFacts:
    """By what a running host shows that it has loaded a model of the family.

    Attributes:
        comfyui_class: of ComfyUI's model.
        comfyui_network: what that model's settings of its network must hold; None: not there.
        webui_class: of Forge Neo's model; other models of A1111's family have a flag `is_NAME`.
    """

    comfyui_class: str
    comfyui_network: Mapping[str, object] = field(default_factory=dict)
    webui_class: str = ""


@dataclass(frozen=True)
class Recomputed:
    """Activations with gradient checkpointing, in bytes.

    Attributes:
        per_image: besides what grows with pixels.
        per_pixel: of the block that is recomputed.
        kept: for a pixel, of each student step whose graph is kept.
    """

    per_image: float
    per_pixel: float
    kept: float


@dataclass(frozen=True)
class CostFacts:
    """One family's published model in 16-bit, fitted to what `tools/count_memory.py` counts.

    Attributes:
        parameters: of the denoiser.
        packed: the share of them that `base_weights` packs.
        staying: how many stay on the device when the base is offloaded.
        buffers: how many the two buffers for offloaded layers hold.
        per_rank: parameters of a LoRA of rank 1, by `lora_layers`.
        per_image: bytes of a graph's activations besides what grows with pixels, such as those
            of its text, by `lora_layers`.
        per_pixel: bytes of a graph's activations for a pixel, by `lora_layers`.
        recomputed: activations with gradient checkpointing.
        chained: bytes for a pixel that a graph takes on top where its input has a gradient, as in
            layers without a LoRA before the first that has one.
    """

    parameters: int
    packed: float
    staying: float
    buffers: float
    per_rank: Mapping[str, int]
    per_image: Mapping[str, float]
    per_pixel: Mapping[str, float]
    recomputed: Recomputed
    chained: float = 0.0


@dataclass(frozen=True)
class Family:
    """The facts of one model family. Its torch half in trainer/families imports them.

    Attributes:
        name: what files, recipes and runs know it by; written in its own module alone.
        label: what messages call it.
        short_label: the same where variants do not matter.
        sizes: the cost of models of another size, by title.
    """

    name: str
    label: str
    short_label: str
    detection: DetectionFacts
    layout: LayoutFacts
    sampling: SamplingFacts
    text: TextFacts
    vae: VaeFacts
    lora: LoraFacts
    sharing: SharingFacts
    hosts: HostFacts
    cost: CostFacts
    sizes: Mapping[str, CostFacts] = field(default_factory=dict)

    def cost_of(self, title: str) -> CostFacts:
        """The cost of the model that is called so."""
        return self.sizes.get(title, self.cost)

    def lora_key(self, module_name: str, config: Config) -> LoraKey:
        """The name that A1111, Forge and ComfyUI accept for a module's LoRA."""
        name = self.lora.module_name(module_name, config)
        source = self.layout.tensor_source(f"{module_name}.weight", config)
        written = (
            f"diffusion_model.{name}" if self.lora.dotted else f"lora_unet_{name}".replace(".", "_")
        )
        if self.lora.split:
            return LoraKey(written)
        return LoraKey(written, source.part, source.shares)


class TensorTable(dict[str, TensorInfo]):
    """Tensors by name without prefix; asking for one that is not there is the user's error."""

    def __init__(self, tensors: Tensors, prefix: str, file_name: str) -> None:
        super().__init__(tensors)
        self.prefix, self.file_name = prefix, file_name

    def __missing__(self, name: str) -> TensorInfo:
        """Never returns.

        Raises:
            CheckpointError: names the tensor.
        """
        raise CheckpointError(
            f"{self.file_name} lacks the tensor {self.prefix + name!r}, without which its "
            "dimensions are unknown. The file is incomplete; download it again or use the full "
            "checkpoint."
        )


def count_blocks(tensors: Tensors, prefix: str) -> int:
    """Number of consecutive blocks `prefix0.`, `prefix1.`, ... that have tensors."""
    heads = {name[len(prefix) :].split(".", 1)[0] for name in tensors if name.startswith(prefix)}
    count = 0
    while str(count) in heads:
        count += 1
    return count
