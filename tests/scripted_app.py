"""The whole app as app.py serves it, but with a model that follows a script instead of the default one.

It is ready at once, and its scores follow the image's colours, so that a test knows them: red is quality,
green correspondence, blue authenticity, each from 1 (none) to 5 (full). The prompt "until stopped" takes so
long. Everything else comes from the environment, as for app.py; a model that M3AGIQA_MODEL names takes
the script's place, and one that was retrained here is what it is.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageStat

sys.path.insert(0, str(Path(__file__).parents[1]))

from annotation import backup
from annotation.settings import Settings
from annotation.store import Store
from annotation.ui.access import Access
from annotation.ui.context import Studio
from annotation.ui.model_service import ModelLoader, from_registry
from annotation.ui.server import serve
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.assessment import AspectResult, Assessment, DescriptionDelta, Event
from m3agiqa.checkpoint.card import Card
from m3agiqa.conversation import normalized_prompt
from m3agiqa.errors import Stopped
from m3agiqa.images import open_image
from m3agiqa.quality_map import QualityMap, even_parts

SCALE = MosScale(1.0, 5.0)


def description(aspect: Aspect) -> str:
    return f"What a script says of the {aspect} of this image."


class ScriptedAssessor:
    """Speaks and scores like m3agiqa.assessor.Assessor, without weights."""

    card = Card(
        name="scripted",
        version="1.0",
        backbone="script",
        learned_from="the images' colours",
        fingerprint=hashlib.sha256(b"scripted").hexdigest(),
        scales=dict.fromkeys(Aspect, SCALE),
        predictors={},
    )

    def stream(
        self,
        image: Path,
        prompt: str | None = None,
        aspects: Sequence[Aspect] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        prompt = normalized_prompt(prompt)
        while prompt == "until stopped":
            time.sleep(0.01)
            if stop():
                raise Stopped("Stopped on request.")
        colours = ImageStat.Stat(open_image(image)).mean
        chosen = [aspect for aspect in aspects or Aspect if prompt or not aspect.needs_prompt]
        words = {aspect: re.findall(r"\s*\S+", description(aspect)) for aspect in chosen}
        for said in zip(*words.values(), strict=True):
            yield from map(DescriptionDelta, chosen, said)
            if stop():
                raise Stopped("Stopped on request.")
        results = {}
        for aspect in chosen:
            mos = SCALE.from_unit(colours[list(Aspect).index(aspect)] / 255)
            results[aspect] = AspectResult(aspect, description(aspect), SCALE.rating(mos), mos, mos, SCALE)
            yield results[aspect]
        yield Assessment(str(image), prompt, results, self.card.title, self.card.learned_from, 0.5)

    def assess(
        self, image: Path, prompt: str | None = None, aspects: Sequence[Aspect] | None = None
    ) -> Assessment:
        *_, assessment = self.stream(image, prompt, aspects)
        return assessment

    def quality_map(self, image: Image.Image, *_: object) -> QualityMap:
        """Of four parts, the worst is the one with the least red."""
        parts = even_parts(image.size, (2, 2))
        boxes = [(left, top, left + width, top + height) for left, top, width, height in parts]
        red = {Aspect.QUALITY: [ImageStat.Stat(image.crop(box)).mean[0] / 255 for box in boxes]}
        return QualityMap.of(image.size, parts, red, "How red it is.", 0.5)

    def assess_all(
        self,
        subjects: Sequence[tuple[Path, str | None]],
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Assessment]:
        return [self.assess(*subject) for subject in subjects]


def main() -> None:
    settings = Settings.from_environment()
    store = Store.open(settings.database_url, settings.images)
    if "M3AGIQA_MODEL" in os.environ:
        loader = ModelLoader(settings.model, from_registry(settings))
    else:
        load = from_registry(settings)
        loader = ModelLoader(
            "scripted",
            load=lambda name, progress: (
                load(name, progress) if name.startswith("corrected-") else ScriptedAssessor()
            ),
        )
    copy = backup.of(settings, store)
    serve(Studio(settings, store, Access.from_settings(settings), loader, copy))


if __name__ == "__main__":
    main()
