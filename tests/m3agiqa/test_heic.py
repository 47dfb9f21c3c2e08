"""Photographs in HEIC, which Pillow reads with a plug-in."""

import io

import numpy as np
import pytest
from PIL import Image

from m3agiqa import InputError, images
from m3agiqa.images import open_image

RED = (255, 0, 0)


def test_it_is_read_with_its_plugin_and_named_without(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 50), RED).save(buffer, "HEIF")
    data = buffer.getvalue()
    image = open_image(data)
    assert image.size == (40, 50)
    assert np.allclose(image.getpixel((20, 20)), RED, atol=12)
    with pytest.raises(InputError, match="a HEIC picture, which cannot be read: it is damaged"):
        open_image(data[: len(data) // 2])
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(
        images, "IMAGE_FORMATS", tuple(name for name in images.IMAGE_FORMATS if name != "HEIF")
    )
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(InputError) as refused:
        open_image(data)
    assert str(refused.value) == (
        "This is a HEIC picture, which cannot be read. Save it as PNG or JPEG. "
        "Where pillow-heif is installed, it can be read."
    )
