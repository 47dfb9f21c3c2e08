"""A model without weights, which speaks as slowly as a test wants it to."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from annotation.settings import Settings
from annotation.store import Store
from annotation.ui.access import Access
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from annotation.ui.model_service import ModelLoader
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.assessment import AspectResult, Assessment, DescriptionDelta, Event
from m3agiqa.checkpoint.card import Card
from m3agiqa.errors import Stopped

SCALE = MosScale(1.0, 5.0)


class ScriptedAssessor:
    """Says "one two three" about every aspect; before each word it waits until `go` is set."""

    card = Card(
        name="scripted",
        version="1.0",
        backbone="script",
        learned_from="a script",
        fingerprint="5c" * 32,
        scales=dict.fromkeys(Aspect, SCALE),
        predictors={},
    )

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.prompts: list[str | None] = []

    def stream(
        self,
        image: Path,
        prompt: str | None = None,
        aspects: Sequence[Aspect] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        self.prompts.append(prompt)
        chosen = [aspect for aspect in Aspect if prompt or not aspect.needs_prompt]
        for word in ("one", " two", " three"):
            for aspect in chosen:
                yield DescriptionDelta(aspect, word)
            while not self.go.wait(0.01):
                if stop():
                    raise Stopped("Stopped on request.")
            if stop():
                raise Stopped("Stopped on request.")
        results = {}
        for aspect in chosen:
            results[aspect] = AspectResult(aspect, "one two three", SCALE.rating(4), 4.0, 4.0, SCALE)
            yield results[aspect]
        yield Assessment(str(image), prompt, results, self.card.title, self.card.learned_from, 0.5)

    def assess_all(
        self,
        subjects: Sequence[tuple[Path, str | None]],
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Assessment]:
        return [list(self.stream(*subject, stop=stop))[-1] for subject in subjects]


@pytest.fixture(autouse=True)
def uploads_lie_in_the_tests_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def assessor() -> ScriptedAssessor:
    return ScriptedAssessor()


@pytest.fixture
def loader(assessor: ScriptedAssessor) -> ModelLoader:
    return ModelLoader("scripted", load=lambda name, progress: assessor)


@pytest.fixture
def studio(store: Store, loader: ModelLoader, tmp_path: Path) -> Studio:
    """A server of one local user."""
    return Studio(Settings(data=tmp_path), store, Access(), loader)


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    path = tmp_path / "stored-under-another-name.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    return Upload(path, "teal square.png")
