"""The examples of the Assess tab: images that the project drew itself, each with a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from m3agiqa.image_metadata import EmbeddedPrompt
from m3agiqa.images import data_url

EXAMPLES_FOLDER = Path(__file__).parent / "examples"
THUMBNAIL_SIDE = 192  # pixels


@dataclass(frozen=True)
class Example:
    """An image, the prompt to judge it by, and what there is to see."""

    image: str
    prompt: str
    caption: str

    @property
    def path(self) -> Path:
        return EXAMPLES_FOLDER / self.image


_LIGHTHOUSE_PROMPT = "a lighthouse on a cliff above a calm sea at sunset, blue mountains in the distance"

EXAMPLE_IMAGES = (
    Example("lighthouse.webp", _LIGHTHOUSE_PROMPT, "Sharp, fits its prompt"),
    Example("lighthouse-blurred.webp", _LIGHTHOUSE_PROMPT, "The same, blurred and noisy"),
    Example("planet.webp", "a planet with rings among the stars", "Clean rendering"),
    Example("spheres.webp", "a waterfall in a mountain forest", "Not what the prompt asks for"),
    Example(
        "swapped-balls.webp",
        "a large red ball between two small blue balls, on a checkered floor",
        "Colours the other way round, easily overlooked",
    ),
    Example(
        "hand.webp",
        "a photo of an open hand with the palm to the viewer",
        "A finger too many, easily overlooked",
    ),
)


def example_prompt(path: Path) -> EmbeddedPrompt | None:
    """The prompt that belongs to a copy of an example, by the file's name and content; else None."""
    for example in EXAMPLE_IMAGES:
        if path.name == example.image and path.read_bytes() == example.path.read_bytes():
            return EmbeddedPrompt(example.prompt, "")
    return None


def gallery() -> str:
    """HTML buttons with thumbnails; each carries the index of its example."""
    buttons = "".join(
        f'<button type="button" class="example" data-index="{i}" title="{escape(example.prompt)}">'
        f'<img src="{_thumbnail(example.path)}" alt="" width="{THUMBNAIL_SIDE}" height="{THUMBNAIL_SIDE}">'
        f"<span>{escape(example.caption)}</span></button>"
        for i, example in enumerate(EXAMPLE_IMAGES)
    )
    return f'<h2 class="note">Or try an example</h2><div class="examples">{buttons}</div>'


def _thumbnail(path: Path) -> str:
    """A data URL, so that the page needs no further request."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return data_url(small, "WEBP", quality=80)
