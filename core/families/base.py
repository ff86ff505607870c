"""What a model family states about itself, as plain data and functions; no torch.

A network is held under diffusers' module names. A checkpoint file uses the names of the code it was
first trained with (LDM, or Stability's MMDiT). The one table that connects the two,
`tensor_source`, serves loading (which tensor fills which parameter) and saving (what hosts call a
LoRA's module).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import CheckpointError
from ..files.tensor_file import TensorInfo

FamilyName = Literal["sd1", "sdxl", "sd3"]
TextEncoder = Literal["clip_l", "clip_g", "t5xxl", "dpdmd"]
VaeKind = Literal["kl", "tiny"]
Change = Literal["none", "swap_halves", "transpose", "squeeze"]
LoraTargets = Literal["attention", "full"]
Tensors = Mapping[str, TensorInfo]
Config = dict[str, object]

DENOISER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


@dataclass(frozen=True)
class TensorSource:
    """Where the value of one network parameter lies in a checkpoint.

    `part` picks one third (q, k, v) of the rows of a fused tensor. `change` says what has to be
    done to the stored tensor: "swap_halves" exchanges the two halves of its rows (shift, scale
    against scale, shift), "transpose" flips a matrix, "squeeze" drops the 1x1 of a convolution.
    """

    key: str
    part: int | None = None
    change: Change = "none"


@dataclass(frozen=True)
class LoraKey:
    """The name hosts give to a module in a LoRA file, without `.lora_down.weight` and the like.

    `part` is 0, 1 or 2 when the module is the q, k or v third of one fused projection of that name.
    """

    name: str
    part: int | None = None


@dataclass(frozen=True)
class VaeFacts:
    """How latents relate to pictures: latent = (vae_latent - shift) * scaling."""

    scaling_factor: float
    shift_factor: float
    rgb_factors: tuple[tuple[float, float, float], ...]
    """Linear latent-to-RGB preview, a row per channel; RGB in [-1, 1]."""


@dataclass(frozen=True)
class Detection:
    """What the names and shapes of a checkpoint's tensors say about it."""

    family: FamilyName
    title: str
    prediction: Literal["eps", "v", "flow"]
    latent_channels: int
    denoiser_prefix: str
    resolution: int
    resolution_multiple: int
    zero_terminal_snr: bool = False
    text_encoders: tuple[TextEncoder, ...] = ()
    vae: VaeKind | None = None
    max_resolution: int | None = None
    """Longest side its position table allows (SD3), or None."""
    folder: bool = False
    """A diffusers folder instead of a single file."""

    @property
    def has_vae(self) -> bool:
        """Whether the checkpoint brings a VAE."""
        return self.vae is not None


@dataclass(frozen=True)
class Family:
    """One model family. Adding a family means writing one more of these."""

    name: FamilyName
    label: str
    network: Literal["UNet2DConditionModel", "SD3Transformer2DModel"]
    schedule: Literal["vp", "flow"]
    flow_shift: float
    predictions: tuple[str, ...]
    guidance_scale: float
    """Teacher guidance when the user names none."""
    resolution: int
    resolution_multiple: int
    vae: VaeFacts
    text_encoders: tuple[TextEncoder, ...]
    """The encoders its prompts go through; SD3 can do without some of them."""
    text_encoder_prefixes: Mapping[TextEncoder, tuple[str, ...]]
    """Where each encoder lies in a single file; the first prefix found is used."""
    needs_all_text_encoders: bool
    matches: Callable[[Tensors], bool]
    """Whether these denoiser tensors (names without prefix) are of this family."""
    describe: Callable[[Tensors, Tensors], dict[str, object]]
    """Fields of Detection read off (denoiser tensors, all tensors)."""
    network_config: Callable[[Tensors], Config]
    """Arguments of the diffusers network, every dimension read off the tensors."""
    tensor_source: Callable[[str, Config], TensorSource]
    """Where a network parameter (diffusers name) lies in a single file, without prefix."""
    lora_modules: Callable[[Config, LoraTargets], list[str]]
    """Full diffusers names of the modules that get LoRA."""
    markers: frozenset[str] = field(default_factory=frozenset)
    """Names of tensors that only mark a variant and hold no weights."""

    lora_name: Callable[[str, Config], str] = lambda module, config: module
    """The host's name of a module, with dots, before `lora_unet_` is put in front."""

    def lora_key(self, module_name: str, config: Config) -> LoraKey:
        """The name that A1111, Forge and ComfyUI accept for a module's LoRA."""
        name = self.lora_name(module_name, config)
        part = self.tensor_source(f"{module_name}.weight", config).part
        return LoraKey("lora_unet_" + name.replace(".", "_"), part)


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
