"""EfficientNet-Lite0 as a multi-scale encoder of several views of one image.

Module and parameter names are those of the published weights, so they load as they are.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

VIEW = 224  # pixels, the resolution of the published weights
LONGEST_SIDE = 1024  # larger images are reduced first, so that a detail view shows a fair share of them
DETAIL_GRID = 2  # detail views a side
GROUPS = (1280, 112, 112, 40, 40, 24, 24)  # channels a token: head, then mean and energy of three stages

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
TAPS = {2: 24, 4: 40, 10: 112}  # block index -> channels, at strides 4, 8 and 16


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
    """[N, 3, 224, 224] -> [N, 7, 7, sum(GROUPS)]: what is there (head) and how sharp it is (stages).

    The last feature map names objects but has forgotten blur and noise; the mean and the standard
    deviation of earlier maps inside each of its cells bring them back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), _norm(32)
        blocks, cin = [], 32
        for repeats, kernel, stride, expansion, cout in STAGES:
            for i in range(repeats):
                blocks.append(Block(cin, cout, kernel, stride if i == 0 else 1, expansion))
                cin = cout
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _pointwise(cin, 1280), _norm(1280)
        self._fc = nn.Linear(1280, 1000)  # ImageNet classes; kept so that all published weights load

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        taps: list[Tensor] = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in TAPS:
                mean = F.adaptive_avg_pool2d(x, 7)
                power = F.adaptive_avg_pool2d(x * x, 7)
                taps = [mean, (power - mean * mean).clamp_min(0).add(1e-6).sqrt(), *taps]
        head = F.relu6(self._bn1(self._conv_head(x)))
        return torch.cat([head, *taps], dim=1).permute(0, 2, 3, 1)


def _pixels(view: Image.Image) -> Tensor:
    data = torch.frombuffer(bytearray(view.tobytes()), dtype=torch.uint8)
    return data.view(VIEW, VIEW, 3).permute(2, 0, 1).float().sub_(127).div_(128)


def views(image: Image.Image) -> Tensor:
    """RGB image -> [1 + DETAIL_GRID², 3, 224, 224]: the whole image, then crops at native resolution."""
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    whole = image.resize((VIEW, VIEW), Image.Resampling.BICUBIC)
    if min(image.size) < VIEW:
        scale = VIEW / min(image.size)
        size = (max(VIEW, round(image.width * scale)), max(VIEW, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    crops = []
    for row in range(DETAIL_GRID):
        for column in range(DETAIL_GRID):
            left = _crop_start(image.width, column)
            top = _crop_start(image.height, row)
            crops.append(image.crop((left, top, left + VIEW, top + VIEW)))
    return torch.stack([_pixels(view) for view in (whole, *crops)])


def _crop_start(length: int, index: int) -> int:
    centre = (2 * index + 1) * length // (2 * DETAIL_GRID)
    return min(max(centre - VIEW // 2, 0), length - VIEW)
