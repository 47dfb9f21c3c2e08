"""Photographs in HEIC, which Pillow reads with a plug-in."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from m3agiqa import InputError
from m3agiqa.images import open_image

RED = (255, 0, 0)
WITHOUT_PILLOW_HEIF = """
import sys
sys.modules["pillow_heif"] = None  # as where it is not installed
from m3agiqa.errors import InputError
from m3agiqa.images import open_image
try:
    open_image(sys.stdin.buffer.read())
except InputError as error:
    print(error)
"""


def test_it_is_read_with_its_plugin_and_named_without() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 50), RED).save(buffer, "HEIF")
    data = buffer.getvalue()
    image = open_image(data)
    assert image.size == (40, 50)
    assert np.allclose(image.getpixel((20, 20)), RED, atol=12)
    with pytest.raises(InputError, match="a HEIC picture, which cannot be read: it is damaged"):
        open_image(data[: len(data) // 2])
    command = [sys.executable, "-c", WITHOUT_PILLOW_HEIF]
    said = subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()
    assert said == (
        "This is a HEIC picture, which cannot be read. Save it as PNG or JPEG. "
        "Where pillow-heif is installed, it can be read.\n"
    )
