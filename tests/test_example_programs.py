"""The examples, run as a reader would: on a few images, with the default model."""

import json
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from annotation.ui.assess.examples import EXAMPLES_FOLDER
from m3agiqa import Aspect, Assessment, Assessor, M3AgiqaError
from m3agiqa.images import ImageSource

FOLDER = Path(__file__).parents[1] / "examples"
PROMPTS = {"lighthouse": "a lighthouse at dusk", "planet": "a planet with rings"}


class AssessesOnce(Assessor):
    """The examples judge the same few pictures again and again; a picture with its prompt is judged once."""

    def __init__(self, assessor: Assessor) -> None:
        super().__init__(assessor.backbone, assessor.predictors, assessor.card, assessor.others)
        self.known: dict[tuple[bytes, str | None], Assessment | M3AgiqaError] = {}

    def assess_all(
        self, subjects: Sequence[tuple[ImageSource, str | None]], *options: Any
    ) -> list[Assessment | M3AgiqaError]:
        keys = [(Path(str(image)).read_bytes(), prompt) for image, prompt in subjects]
        new = {key: subject for key, subject in zip(keys, subjects, strict=True) if key not in self.known}
        self.known.update(zip(new, super().assess_all(list(new.values()), *options), strict=True))
        return [self.known[key] for key in keys]


@pytest.fixture(scope="module")
def assesses_once(assessor: Assessor) -> AssessesOnce:
    return AssessesOnce(assessor)


@pytest.fixture(autouse=True)
def loaded_once(assesses_once: AssessesOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is empty, and the default model that every example loads is there."""
    monkeypatch.setattr(Assessor, "from_pretrained", lambda name: assesses_once)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Pictures of two prompts, and the same out of focus; what cannot be read, or has no counterpart, too."""
    sharp, blurred = tmp_path / "sharp", tmp_path / "blurred"
    for folder in (sharp, blurred):
        folder.mkdir()
        for name, prompt in PROMPTS.items():
            with Image.open(EXAMPLES_FOLDER / f"{name}.webp") as image:
                shown = image.convert("RGB").resize((256, 256))
            shown = shown.filter(ImageFilter.GaussianBlur(6)) if folder is blurred else shown
            shown.save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(prompt)
    (sharp / "broken.png").write_bytes(b"no image")
    shutil.copy(sharp / "planet.png", blurred / "alone.png")
    return [sharp, blurred]


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


def test_best_of_n(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sharp, blurred = (folder / "lighthouse.png" for folder in folders)
    run("best_of_n.py", PROMPTS["lighthouse"], blurred, sharp, monkeypatch=monkeypatch)
    first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert first[:2] == ["1", str(sharp)]
    assert second[:2] == ["2", str(blurred)]
    assert first[3] in ("clearly better", "about equal")


@pytest.mark.parametrize("order", [1, -1], ids=["worse", "better"])
def test_compare_generators(
    order: int, folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("compare_generators.py", *folders[::order], monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    [quality] = (line for line in told.splitlines() if line.startswith("| quality"))
    assert quality.endswith("| worse |" if order == 1 else "| better |")
    assert "| quality | 2 |" in quality
    assert bool(ended.value.code) == ("| worse |" in told)
    assert "Largest losses in quality" in told or order == -1
    assert f"Left out: {folders[0] / 'broken.png'}: " in told
    assert f"Only in {folders[1]}: alone" in told
    assert "Fewer than 20 prompts" in told


def test_compare_generators_without_a_common_prompt(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[1] / "planet.txt").write_text("a moon")
    with pytest.raises(SystemExit) as ended:
        run("compare_generators.py", *folders, monkeypatch=monkeypatch)
    assert ended.value.code == 2
    assert "share fewer than two prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.5, "better"), (0.0, "no difference shown"), (-0.5, "worse")]
)
def test_the_interval_is_paired(shift: float, verdict: str) -> None:
    """Prompts differ by far more than the generators do, and the difference is found all the same."""
    example: dict[str, Any] = runpy.run_path(str(FOLDER / "compare_generators.py"))
    draws = np.random.default_rng(1)
    prompts, noise = draws.normal(0, 3, 40), draws.normal(0, 0.5, (2, 40))
    before, after = (
        {f"prompt {index}": {Aspect.QUALITY: float(mos)} for index, mos in enumerate(scores)}
        for scores in (prompts + noise[0], prompts + noise[1] - noise.mean(1) @ [-1, 1] + shift)
    )
    [quality] = example["shifts"](before, after)
    low, high = quality.interval
    assert quality.verdict == verdict
    assert low < shift < high
    assert 0.3 < high - low < 0.6  # of two independent samples it would be over 2


def test_the_notebook(folders: list[Path], tmp_path: Path) -> None:
    cells = json.loads((FOLDER / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    for name, folder in zip(("a.png", "b.png"), folders, strict=True):
        shutil.copy(folder / "planet.png", tmp_path / name)
    variables: dict[str, Any] = {}
    for cell in code:
        exec("".join(cell["source"]), variables)
    assert [place.place for place in variables["ranking"].places()] == [1, 2]
    assert len(variables["elements"]) > 0
