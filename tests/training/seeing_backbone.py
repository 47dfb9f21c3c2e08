"""A backbone that sees: a small random network, frozen, whose hidden states hold colours and light.

Nothing in them stands by itself, so a predictor has to learn what people mean; it costs nothing to run.
"""

import numpy as np
import torch
from PIL import Image
from scripted_backbone import ScriptedBackbone
from torch import Tensor

from m3agiqa.backbones.base import Generation, Request
from m3agiqa.conversation import Conversation

WIDTH = 48
GRID = 3


class SeeingBackbone(ScriptedBackbone):
    """Speaks by the script of ScriptedBackbone; each token of its states is a part of the image."""

    hidden_size = WIDTH

    @property
    def head(self) -> Tensor:
        return torch.zeros(self.vocab_size, WIDTH)

    def describe(self, requests: list[Request], stop=lambda: False):
        rows = [(request.image, told) for request in requests for told in request.conversations]
        for said in super().describe(requests, stop):
            if isinstance(said, Generation):
                image, opened = rows[said.row]
                said = Generation(said.row, said.description, said.rating, seen(image, opened))
            yield said


def seen(image: Image.Image, told: Conversation) -> Tensor:
    """[GRID * GRID, WIDTH] in 16 bit."""
    side = 16 * GRID
    pixels = np.asarray(image.convert("RGB").resize((side, side)), dtype=np.float32) / 255
    parts = pixels.reshape(GRID, 16, GRID, 16, 3).transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, 256, 3)
    spread = parts.max(2) - parts.min(2)  # how colourful each pixel is
    seen = np.concatenate([parts.mean(1), parts.std(1), spread.mean(1, keepdims=True)], axis=1)
    weights = torch.randn(seen.shape[1], WIDTH, generator=torch.Generator().manual_seed(1))
    return torch.tanh(torch.from_numpy(seen) @ weights).half()
