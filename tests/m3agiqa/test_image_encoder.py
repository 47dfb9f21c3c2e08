"""How nano looks at an image."""

import pytest
from PIL import Image
from tiny_nano import tiny_nano
from torch import nn

from m3agiqa import Aspect, Stopped
from m3agiqa.backbones.base import Request
from m3agiqa.conversation import Conversation


def test_stop_is_heeded_between_looks() -> None:
    nano, looks = tiny_nano(), list[nn.Module]()
    nano.image_encoder.vision.register_forward_hook(lambda module, inputs, output: looks.append(module))
    request = Request(Image.new("RGB", (300, 300), "gold"), (Conversation.open(Aspect.QUALITY, None),))
    with pytest.raises(Stopped):
        list(nano.describe([request], lambda: len(looks) > 0))
    assert len(looks) == 2, "of the whole at two resolutions, not of its windows"
