"""The loop, closed: people correct 200 images, and the model that is trained from that is nearer to them.

Three annotators, each with a habit of their own, share a taste that the data's scores do not have: dark
pictures are better to them than the data says, gaudy ones worse, and everything is a little worse.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from drawings import COLOURS, SHAPES, draw
from PIL import Image, ImageEnhance
from seeing_backbone import SeeingBackbone

from annotation import __main__ as annotation_cli
from annotation import retraining
from annotation.exchange.exporting import export
from annotation.retraining import Retraining
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item
from annotation.store.log import promote
from annotation.ui.model_service import model_to_serve
from m3agiqa import Assessor
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.loading import BACKBONE_CLASSES
from m3agiqa.checkpoint.registry import Candidate, candidates, find
from m3agiqa.metrics import rmse, srcc
from m3agiqa.samples import Sample, read_samples, write_samples
from training.__main__ import main

SCALE = MosScale(1, 5)
QUALITY = Aspect.QUALITY
ANNOTATORS = {"ada": 0.2, "ben": -0.3, "eva": 0.1}
"""How much higher or lower each of them scores everything."""
NOISE = 0.35  # standard deviation of a single score
CORRECTED = 200


@dataclass(frozen=True)
class Picture:
    """A drawing with what the data says of it and what people would say in the mean."""

    image: Path
    prompt: str
    of_data: float
    of_people: float


def pictures(folder: Path, numbers: range) -> list[Picture]:
    """Drawings between dark and light, between grey and gaudy."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in numbers:
        rng = Random(number)
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        light, gaudy = rng.random(), rng.random()
        image = draw(shape, colour, 64, number)
        image = ImageEnhance.Color(image).enhance(2 * gaudy)
        image = ImageEnhance.Brightness(image).enhance(0.3 + 1.2 * light)
        path = folder / f"{number}.png"
        image.save(path)
        of_data = 2 + 1.6 * light + 0.8 * gaudy
        of_people = SCALE.clamp(of_data + 1.5 * (1 - light) - 1.6 * gaudy - 0.4)
        found.append(Picture(path, f"a {colour} {shape}, number {number}", of_data, of_people))
    return found


def correct(store: Store, shown: list[Picture]) -> None:
    """Every annotator scores every picture, and says why."""
    stored = [store.images.add(picture.image, picture.image.name) for picture in shown]

    def annotate(session) -> None:
        for number, (picture, image) in enumerate(zip(shown, stored, strict=True)):
            item, _ = add_item(session, image, picture.prompt, "drawings")
            for name, habit in ANNOTATORS.items():
                noise = Random(f"{name} {number}").gauss(0, NOISE)
                score = round(SCALE.clamp(picture.of_people + habit + noise), 1)
                said = AspectResponse(
                    QUALITY, score, SCALE, f"{name} finds number {number} {SCALE.rating(score)}."
                )
                save(session, NewSubmission(f"{name}-{number}", item.id, name, (said,)))

    store.database.transact(annotate)


@dataclass(frozen=True)
class Loop:
    """What is left when everything has been done."""

    settings: Settings
    store: Store
    before: Path
    run: Path
    candidate: Candidate


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A model is trained on data, its images and new ones are corrected, and another one is trained."""
    folder = tmp_path_factory.mktemp("loop")
    settings = Settings(data=folder / "data")
    drawn = pictures(folder / "drawn", range(240))
    samples = [
        Sample(f"d{n}", each.image, each.prompt, {QUALITY: each.of_data}, {QUALITY: "By the teacher."})
        for n, each in enumerate(drawn[:180])
    ]
    write_samples(samples, folder / "samples.jsonl")
    split = {"by": "image", "ratios": [6, 2, 1]}
    config = {
        "data": {"format": "samples", "path": str(folder / "samples.jsonl"), "scale": [1, 5], "split": split},
        "start": None,
        "fit": {
            "extractor": "none",
            "dim": 16,
            "epochs": 60,
            "lr": 0.005,
            "dropout": 0.0,
            "input_dropout": 0.0,
        },
    }
    (folder / "drawn.yaml").write_text(yaml.safe_dump(config))
    command = ["run", str(folder / "drawn.yaml"), "--run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONE_CLASSES, "nano", SeeingBackbone)
        assert main([*command, str(folder / "before")]) == 0

        store = Store.open(settings.database_url, settings.images)
        correct(store, drawn[-CORRECTED:])
        export(store, folder / "export")

        again = [*command, str(folder / "after"), "--set", f"before={folder / 'before' / 'checkpoint'}"]
        again += ["--add-annotations", str(folder / "export"), "--register", str(settings.models)]
        assert main(again) == 0
    (candidate,) = candidates(settings.models)
    yield Loop(settings, store, folder / "before" / "checkpoint", folder / "after", candidate)
    store.close()


def test_the_table_says_that_the_new_model_is_nearer_to_people(loop: Loop) -> None:
    (people,) = [row for row in loop.candidate.comparison.rows if row.part == "people"]
    assert people.n >= 20
    assert people.after.rmse < 0.6 * people.before.rmse
    assert people.after.srcc > people.before.srcc + 0.1
    assert abs(people.after.bias) < abs(people.before.bias)


def test_it_is_nearer_on_images_that_nobody_ever_saw(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONE_CLASSES, "nano", SeeingBackbone)
    fresh = pictures(tmp_path, range(1000, 1060))
    wanted = [each.of_people for each in fresh]
    found = {}
    for when, folder in (("before", loop.before), ("after", loop.candidate.folder)):
        assessor = Assessor.from_pretrained(folder)
        told = [assessor.assess(each.image, each.prompt).aspects[QUALITY].mos for each in fresh]
        found[when] = rmse(told, wanted), srcc(told, wanted)
    assert found["after"][0] < 0.6 * found["before"][0]
    assert found["after"][1] > found["before"][1] + 0.1


def test_people_replace_the_teacher_and_nothing_held_out_is_learned_from(loop: Loop) -> None:
    samples = read_samples(loop.run / "samples.jsonl")
    scored = [sample for sample in samples if sample.raters]
    assert len(scored) == CORRECTED and len(samples) == 240
    assert all(sample.raters == {QUALITY: len(ANNOTATORS)} for sample in scored)
    assert all(" finds number " in sample.descriptions[QUALITY] for sample in scored)
    before = {s.id: s.split for s in read_samples(loop.before.parent / "samples.jsonl")}
    learned = {sample.id for sample in samples if sample.split == "train"}
    assert learned.isdisjoint(name for name, part in before.items() if part != "train")
    exported = read_samples(loop.run.parent / "export" / "samples.jsonl")
    held_out = {np.asarray(Image.open(s.image)).tobytes() for s in exported if s.split == "test"}
    trained = {np.asarray(Image.open(s.image)).tobytes() for s in samples if s.split == "train"}
    assert held_out and held_out.isdisjoint(trained)


def test_corrections_alone_are_enough(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(BACKBONE_CLASSES, "nano", SeeingBackbone)
    monkeypatch.setattr(Retraining, "_train", lambda self, command, held: main(command[3:]))
    in_process = SimpleNamespace(run=lambda command: SimpleNamespace(returncode=main(command[3:])))
    monkeypatch.setattr(retraining, "subprocess", in_process)
    environment = {"M3AGIQA_DATA": str(loop.settings.data), "M3AGIQA_MODEL": str(loop.before)}
    environment["M3AGIQA_RUNS"] = str(tmp_path)
    assert annotation_cli.main(["retrain", "--plan"], environment) == 0
    assert "read samples from" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert annotation_cli.main(["retrain"], environment) == 0
    assert "fit quality: level, gain and regression head" in capsys.readouterr().out
    newest = candidates(loop.settings.models)[0]
    material = Retraining(loop.settings).material(loop.store)
    assert material.described + material.described_test == CORRECTED and material.described_test >= 20
    (people,) = newest.comparison.rows
    assert newest.card.title.startswith("corrected") and newest.comparison.doubt == ""
    assert people.part == "people" and people.after.rmse < 0.7 * people.before.rmse
    assert people.after.srcc > people.before.srcc
    changed = newest.comparison.changed
    assert len(changed) == 10 and {image.is_held_out for image in changed} == {True, False}
    assert [image.change for image in changed] == sorted((image.change for image in changed), reverse=True)
    (scores,) = zip(*(image.scores for image in changed), strict=True)
    nearer = [abs(score.after - score.mos) < abs(score.before - score.mos) for score in scores]
    assert sum(nearer) >= 8 and all(len(set(score.words)) == 2 for score in scores)


def test_once_promoted_it_is_what_is_served(loop: Loop) -> None:
    loop.store.database.transact(lambda session: promote(session, loop.candidate.name, "ada"))
    model = model_to_serve(loop.store, loop.settings)
    assert find(model, loop.settings.models) == loop.candidate.folder
