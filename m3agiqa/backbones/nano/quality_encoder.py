"""Scores by the vision encoder's later stages, fine-tuned to scores of images.

The early stages stay as published: their maps are computed once, for the image's other features, too.
Of the later ones the 1 x 1 convolutions learn, as LoRA's would (training.nano.fit_quality_encoder). Batch
normalization is folded into the convolutions, which makes both training and inference quicker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.efficientnet_lite import Block, EfficientNetLite0

N_EARLY_STAGES = 3  # of the vision encoder; stride 8
ENCODED_ASPECTS = tuple(Aspect)
"""Correspondence is judged without the prompt here, and only helps the others to learn."""
HIDDEN_SIZE = 256


def early_maps(stages: Sequence[Tensor]) -> Tensor:
    """Of the vision encoder's maps, those that the quality encoder begins with."""
    return stages[N_EARLY_STAGES - 1]


class FoldedBlock(nn.Module):
    """An inverted residual block without batch normalization of its own."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.expand = folded(block._expand_conv, block._bn0)
        self.depthwise = folded(block._depthwise_conv, block._bn1)
        self.project = folded(block._project_conv, block._bn2)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + output if self.residual else output


class QualityEncoder(nn.Module):
    """Early maps of an image as a whole and of its own pixels -> scores [N, ENCODED_ASPECTS].

    Scores are in standard deviations from the mean of the training data; unfitted, they are 0.
    """

    def __init__(self, vision: EfficientNetLite0) -> None:
        super().__init__()
        later = vision._blocks[vision.ends[N_EARLY_STAGES - 1] + 1 :]
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in later if isinstance(block, Block))
        self.head = folded(vision._conv_head, vision._bn1)
        channels = self.head.out_channels
        self.norm = nn.LayerNorm(channels)
        self.whole, self.window = nn.Linear(channels, HIDDEN_SIZE), nn.Linear(channels, HIDDEN_SIZE)
        self.out = nn.Linear(HIDDEN_SIZE, len(ENCODED_ASPECTS))
        self.dropout = nn.Dropout(0.3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, whole: Tensor, windows: Sequence[Tensor]) -> Tensor:
        """Maps [N, C, h, w] of the images and [W, C, h, w] of each one's windows; the mean over these."""
        counts = [len(each) for each in windows]
        owners = [image for image, count in enumerate(counts) for _ in range(count)]
        pooled_whole, pooled_windows = self.pooled(whole), self.pooled(torch.cat(list(windows)))
        with torch.autocast("cpu", enabled=False):  # 16 bit would show in the MOS
            hidden = self.whole(self.dropout(pooled_whole))[owners] + self.window(
                self.dropout(pooled_windows)
            )
            scores = self.out(F.gelu(hidden))
        return torch.stack([each.mean(0) for each in scores.split(counts)])

    def pooled(self, maps: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, channels of the head]."""
        x = maps.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        mean = F.relu6(self.head(x)).float().mean((2, 3))
        pooled: Tensor = self.norm(mean.to(self.norm.weight.dtype))
        return pooled


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that does what the two do in turn; it learns if it is a 1 x 1 convolution."""
    return fuse_conv_bn_eval(conv.eval(), norm.eval()).requires_grad_(conv.kernel_size == (1, 1))
