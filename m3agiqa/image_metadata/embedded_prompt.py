"""Looking for the prompt in one image file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m3agiqa.conversation import MAX_PROMPT
from m3agiqa.image_metadata.generators import PROMPT_SOURCES
from m3agiqa.image_metadata.places import texts_behind_pixels, texts_in_metadata
from m3agiqa.images import METADATA_LEFT_OUT, ImageSource


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt found in an image file, and where, in words for people; without text: why there is none."""

    text: str
    origin: str


LEFT_OUT = EmbeddedPrompt("", "none, as the text in the image file is far too large once unpacked")


def find_prompt(source: ImageSource) -> EmbeddedPrompt | None:
    """The prompt that the file carries, LEFT_OUT for one that is not unpacked, or None.

    What stands in a file is untrusted: anything malformed counts as "no prompt", never as an error. Pixels
    are decoded only where nothing stands in front of them.
    """
    left_out = False
    for texts_by_place in (texts_in_metadata, texts_behind_pixels):
        for place, texts in texts_by_place(source).items():
            left_out = left_out or METADATA_LEFT_OUT in texts
            for prompt_source in PROMPT_SOURCES:
                if prompt_source.place is not place or prompt_source.key not in texts:
                    continue
                text = _clean(prompt_source.read(texts[prompt_source.key], texts))
                if len(text) > MAX_PROMPT:
                    origin = f"{prompt_source.origin}, its first {MAX_PROMPT:,} characters"
                    return EmbeddedPrompt(text[:MAX_PROMPT], origin)
                if text:
                    return EmbeddedPrompt(text, prompt_source.origin)
    return LEFT_OUT if left_out else None


def shared_prompt(sources: Sequence[ImageSource]) -> str:
    """The prompt that all of these files carry; "" where one carries none, or another one."""
    prompt = ""
    for source in sources:
        embedded = find_prompt(source)
        if embedded is None or not embedded.text or embedded.text != (prompt or embedded.text):
            return ""
        prompt = embedded.text
    return prompt


def _clean(text: str | None) -> str:
    """Without NUL and lone surrogates, which JSON can spell but no file can hold."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode().strip()
