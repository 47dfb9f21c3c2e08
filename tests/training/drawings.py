"""Pictures drawn by code, for data sets of tests."""

from random import Random

from PIL import Image, ImageDraw

COLOURS = {"red": "#c03030", "green": "#30a040", "blue": "#3050c0", "yellow": "#d0b020"}
SHAPES = ("circle", "square", "bar")


def draw(shape: str, colour: str, size: int, seed: int) -> Image.Image:
    """A coloured shape on a grey ground, somewhere near the middle."""
    rng = Random(seed)
    image = Image.new("RGB", (size, size), "#808080")
    x, y, r = rng.uniform(0.35, 0.65) * size, rng.uniform(0.35, 0.65) * size, 0.25 * size
    box = (x - r, y - (r / 3 if shape == "bar" else r), x + r, y + (r / 3 if shape == "bar" else r))
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[colour])
    return image
