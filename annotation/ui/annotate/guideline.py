"""What the five scores mean, with an example of each, for the Annotate tab."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from PIL import Image, ImageFilter

from annotation.ui.assess.cards import ASPECT_QUESTIONS
from annotation.ui.assess.examples import EXAMPLES_FOLDER
from m3agiqa.aspects import RATING_WORDS, Aspect
from m3agiqa.images import data_url

EXAMPLE_SIDE = 144  # pixels
BLUR_RADII = (6.0, 3.0, 1.5, 0.7, 0.0)  # pixels; from bad to excellent

# Per aspect from bad to excellent: what the score means, and an example in words, where it is not an image.
LEVEL_EXAMPLES: dict[Aspect, tuple[tuple[str, str], ...]] = {
    Aspect.QUALITY: (
        ("Little can be made out.", ""),
        ("Flaws disturb: it is blurred, noisy or badly lit.", ""),
        ("Flaws are plain, and do not disturb.", ""),
        ("Flaws show on a close look.", ""),
        ("Sharp, clean and well lit all over.", ""),
    ),
    Aspect.CORRESPONDENCE: (
        ("Nothing of the prompt is there.", "a golden retriever puppy in a sunny garden"),
        ("Little is there, and not what matters.", "a red fishing boat on a calm sea at night"),
        ("The main thing is there, much else is not.", "a lighthouse in a snowstorm, two ships behind it"),
        ("A detail is missing or wrong.", "a lighthouse on a cliff above a calm sea, a rainbow over it"),
        ("All of it is there, and as it is asked for.", "a lighthouse on a cliff above a calm sea at sunset"),
    ),
    Aspect.AUTHENTICITY: (
        ("Nothing holds together.", "bodies that run into one another, no line that ends"),
        ("Impossible at first sight.", "a hand with six fingers, letters that are none"),
        ("Plainly generated, yet possible.", "skin as smooth as wax, each blade of grass alike"),
        ("A detail gives it away.", "an ear-ring that melts into the hair"),
        ("A person could have taken or painted it.", "shadows that agree, signs that can be read"),
    ),
}


def guideline_html() -> str:
    """Of all aspects; static/annotate.js shows that of the active one."""
    return "".join(map(_section, Aspect))


def _section(aspect: Aspect) -> str:
    pictures = list(_pictures()) if aspect is Aspect.QUALITY else [""] * len(RATING_WORDS)
    levels = "".join(
        f"<li><b>{score} {word}</b>. {escape(meaning)}"
        f"{picture}{f' <q>{escape(example)}</q>' if example else ''}</li>"
        for score, (word, (meaning, example), picture) in enumerate(
            zip(RATING_WORDS, LEVEL_EXAMPLES[aspect], pictures, strict=True), 1
        )
    )
    judged = ""
    if aspect is Aspect.CORRESPONDENCE:
        judged = f'<p class="note">If these were the prompts of this image:</p>{_example(0.0)}'
    return (
        f'<section data-for="{aspect}"><h3>{aspect.capitalize()}: {escape(ASPECT_QUESTIONS[aspect])}</h3>'
        f"{judged}<ul>{levels}</ul></section>"
    )


def _pictures() -> Iterator[str]:
    return map(_example, BLUR_RADII)


def _example(blur: float) -> str:
    """The first example of the Assess tab, small and blurred."""
    with Image.open(EXAMPLES_FOLDER / "lighthouse.webp") as opened:
        small = opened.convert("RGB")
    small.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    url = data_url(small.filter(ImageFilter.GaussianBlur(blur)), "WEBP", quality=80)
    return f'<img src="{url}" alt="" width="{EXAMPLE_SIDE}" height="{EXAMPLE_SIDE}">'
