"""What tests of all packages share: one loaded model, and a picture to show it."""

from collections.abc import Callable, Iterator, Sequence

import hypothesis
import pytest
from PIL import Image, ImageDraw

from m3agiqa import Assessor, metrics

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is slow now and then
hypothesis.settings.load_profile("any machine")

SLOW_FILES = (
    "test_assess.py",
    "test_pipeline.py",
    "test_crash.py",
    "test_annotate.py",
    "test_assessor.py",
    "test_retraining_loop.py",
    "test_cli.py",
    "test_failures.py",
    "test_align.py",
    "test_batch_scoring.py",
    "test_proxies.py",
    "test_example_programs.py",
    "test_finetune.py",
    "test_wheel.py",
    "test_ray_scoring.py",
    "test_quality_encoder.py",
    "test_zero_gpu.py",
    "test_retraining.py",
    "test_spaces.py",
    "test_nano.py",
    "test_ablate.py",
)
"""Those of half a minute and more, the longest one first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that all workers end at about the same time."""
    order = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(SLOW_FILES)))


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals would take most of the time of a small run; test_metrics.py has them at full length."""

    def quick(metric: Callable, predicted: Sequence, true: Sequence, draws: int = 0) -> tuple[float, float]:
        return metrics.bootstrap_interval(metric, predicted, true, draws=50)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.evaluation.evaluate.bootstrap_interval", quick)
        patch.setattr("training.stages.leave_source_out.BOOTSTRAP_DRAWS", 50)
        yield


@pytest.fixture(scope="session")
def assessor() -> Assessor:
    """The shipped default model. Loading takes seconds, so all tests share it and none may change it."""
    return Assessor.from_pretrained("nano")


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A red ball on green ground under a blue sky."""
    image = Image.new("RGB", (160, 120), (120, 170, 230))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 80, 160, 120), fill=(60, 140, 60))
    pen.ellipse((50, 30, 110, 90), fill=(200, 40, 40))
    return image
