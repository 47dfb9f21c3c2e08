"""EfficientNet-Lite0 as a multi-scale encoder of one image, at two resolutions.

Module and parameter names are those of the published weights, so they load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.backbones.nano.nss_features import appearance

WHOLE = 224  # pixels, the resolution of the published weights: here the network knows best what it sees
FINE = 448  # pixels; blur, noise and smeared texture vanish below this, and a larger scale transfers worse

# Published layout of EfficientNet-Lite0: repeats, kernel, stride, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
POINTWISE = r"_blocks\.\d+\._(expand|project)_conv|_conv_head"  # the 1 x 1 convolutions, which take LoRA
TEXTURES = (1, 2, 4)  # stages beside the head that tell of a place how sharp it is; at strides 4, 8 and 16
GROUPS = (1280, *(STAGES[i][-1] for i in reversed(TEXTURES) for _ in range(2)))
"""Channels of a place: head, then mean and spread of three stages."""
LARGEST = 1024  # pixels a side; more are given up first
LOOKS = 6  # stages whose statistics tell how the image looks; the last one and the head know too much of what
STATISTICS = 2 * sum(channels for *_, channels in STAGES[:LOOKS])


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding, which the weights were trained with."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def _pointwise(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 1, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = cin * expansion
        if expansion != 1:
            self._expand_conv = _pointwise(cin, mid)
            self._bn0 = _norm(mid)
        self._depthwise_conv = SameConv(mid, mid, kernel, stride, groups=mid)
        self._bn1 = _norm(mid)
        self._project_conv = _pointwise(mid, cout)
        self._bn2 = _norm(cout)
        self.expands, self.residual = expansion != 1, stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """[N, 3, S, S] -> maps [N, C, ., .] of the seven stages at strides 2 to 32, and of the head."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), _norm(32)
        blocks, cin = [], 32
        self.ends: list[int] = []  # the last block of each stage
        for repeats, kernel, stride, expansion, cout in STAGES:
            for i in range(repeats):
                blocks.append(Block(cin, cout, kernel, stride if i == 0 else 1, expansion))
                cin = cout
            self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _pointwise(cin, 1280), _norm(1280)
        self._fc = nn.Linear(1280, 1000)  # ImageNet classes; kept so that all published weights load

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps: list[Tensor] = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                maps.append(x)
        return [*maps, F.relu6(self._bn1(self._conv_head(x)))]


def places(maps: list[Tensor], side: int) -> Tensor:
    """Maps -> [N, side², sum(GROUPS)]: what is where (head), and how sharp it is there (stages).

    The last feature map names objects but has forgotten blur and noise; the mean and the standard
    deviation of earlier maps inside each cell bring them back.
    """
    cells = [F.adaptive_avg_pool2d(maps[-1], side)]
    for stage in reversed(TEXTURES):
        mean = F.adaptive_avg_pool2d(maps[stage], side)
        power = F.adaptive_avg_pool2d(maps[stage] ** 2, side)
        cells += [mean, (power - mean * mean).clamp_min(0).add(1e-6).sqrt()]
    return torch.cat(cells, dim=1).flatten(2).transpose(1, 2)


def statistics(maps: list[Tensor]) -> Tensor:
    """Maps -> [N, STATISTICS] in 32 bit: mean and logarithm of the spread of each channel of the stages."""
    found = []
    for stage in maps[:LOOKS]:
        flat = stage.float().flatten(2)
        found += [flat.mean(2), (flat.std(2) + 1e-3).log()]
    return torch.cat(found, dim=1)


class Views(NamedTuple):
    """N images as nano looks at them."""

    whole: Tensor
    """[N, 3, 224, 224]."""
    fine: Tensor
    """[N, 3, 448, 448]."""
    appearance: Tensor
    """[N, APPEARANCE]."""


def views(images: Sequence[Image.Image]) -> Views:
    """RGB images of any size, squashed into squares."""
    images = [_reduced(image) for image in images]
    return Views(
        torch.stack([_pixels(image, WHOLE) for image in images]),
        torch.stack([_pixels(image, FINE) for image in images]),
        torch.stack([torch.from_numpy(appearance(image)) for image in images]),
    )


def _reduced(image: Image.Image) -> Image.Image:
    """At most LARGEST a side, so that a huge image is resampled once only."""
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    return image


def _pixels(image: Image.Image, side: int) -> Tensor:
    """[3, side, side]."""
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(side, side, 3).permute(2, 0, 1).float().sub_(127).div_(128)
