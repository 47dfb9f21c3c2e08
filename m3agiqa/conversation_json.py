"""The files in which the paper's authors keep conversations: a JSON list about one aspect."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.conversation import Conversation
from m3agiqa.samples import Sample

IMAGE_MARK = "<image>\n"
"""Where the image belongs: before the text of the first turn."""


def write_conversations(samples: Iterable[Sample], aspect: Aspect, scale: MosScale, path: Path) -> None:
    """Write both rounds about one aspect; image paths are relative where below the file's folder.

    Every sample must have a description and a MOS for the aspect.
    """
    base = path.parent.resolve()
    rows = []
    for sample in samples:
        opened = Conversation.open(aspect, sample.prompt).describe(sample.descriptions[aspect])
        turns = opened.rate(scale.rating(sample.mos[aspect])).turns
        image = sample.image.resolve()
        rows.append(
            {
                "id": sample.id,
                "image": str(image.relative_to(base) if image.is_relative_to(base) else image),
                "conversations": [
                    {"role": turn.role, "content": turn.content if i else IMAGE_MARK + turn.content}
                    for i, turn in enumerate(turns)
                ],
            }
        )
    path.write_text(json.dumps(rows, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
