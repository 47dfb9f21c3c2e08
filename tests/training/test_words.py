"""People who always correct one error of words and one of scores: on images that none of them saw, a model
that was retrained from that makes both less often. Words that got worse do not serve."""

import copy
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Self
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from drawings import COLOURS, SHAPES, draw
from PIL import ImageEnhance
from safetensors.torch import save_file
from scripted_backbone import QUICK, drawings
from test_annotations import CORRECTIONS, write_export
from tiny_backbone import TinyBackbone
from tiny_nano import tiny_nano

from m3agiqa import Assessor
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.assessment import AspectResult
from m3agiqa.backbones.base import Generation, Request
from m3agiqa.backbones.loading import BACKBONE_CLASSES
from m3agiqa.backbones.nano import CONNECTOR_FILE, NanoBackbone, image_encoder
from m3agiqa.backbones.nano.connector import Connector, ImageFeatures
from m3agiqa.backbones.nano.efficientnet_lite import CHANNEL_GROUPS, N_STATISTICS, Views, views
from m3agiqa.backbones.nano.grounded_text import SENTENCES, FirstEstimate, write_first_estimates
from m3agiqa.backbones.nano.head_adapter import HeadAdapter
from m3agiqa.checkpoint.card import Card, read_card, write_card
from m3agiqa.checkpoint.comparison import Comparison
from m3agiqa.checkpoint.predictor_weights import load_predictor, save_predictor
from m3agiqa.checkpoint.registry import Candidate, candidates
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.images import open_image
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample
from training import words
from training.__main__ import main
from training.data.human_feedback import read_annotations
from training.data.variants import own_variants
from training.evaluation.description_metrics import tone
from training.nano.fit_words import DescriptionTokens, WordsConfig, fit_head_adapter
from training.run import RunFolder
from training.stages.describe import describe
from training.stages.fit import predict
from training.stages.hidden_cache import HiddenCache, backbone_id

QUALITY = Aspect.QUALITY
SCALE = MosScale(1, 5)
STRUCK_TOPIC = "layout"
"""Whatever the model says of this, people strike it out."""
STRUCK = {s.text for s in SENTENCES if s.aspect is QUALITY and s.topic == STRUCK_TOPIC}
MISSING_POINTS = 1.0
"""So much more than the model people give to every image."""
TRAIN, TEST, FRESH = 32, 8, 10  # images


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


@dataclass(frozen=True)
class Loop:
    """What is left when everything has been done."""

    before: Path
    run: Path
    export: Path
    candidate: Candidate
    fresh: list[Path]


@pytest.fixture(scope="module")
def _quick() -> Iterator[None]:
    """nano with a tiny language model, to which an image is its brightness."""
    nano, kept = tiny_nano(), {}

    def cached_views(images: list) -> Views:
        key = images[0].tobytes()
        if key not in kept:
            kept[key] = views(images)
        return kept[key]

    def image_features(self: image_encoder.ImageEncoder, shown: Views, stop: object) -> ImageFeatures:
        brightness = float(shown.pixels.mean())
        generator = torch.Generator().manual_seed(int(1e6 * brightness))
        statistics = torch.full((1, 2 * N_STATISTICS), 8 * brightness - 4)
        cells = torch.rand(
            1, *self.connector.grid_embedding.shape[:-1], sum(CHANNEL_GROUPS), generator=generator
        )
        return ImageFeatures(cells, statistics, shown.appearance, torch.zeros(1, 11), torch.zeros(1, 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NanoBackbone, "from_base", classmethod(lambda cls, progress=None: copy.deepcopy(nano)))
        patch.setattr(image_encoder.ImageEncoder, "features", image_features)
        patch.setattr(image_encoder, "views", cached_views)
        yield


def write_checkpoint(folder: Path) -> None:
    """A model whose scores are all about 3."""
    folder.mkdir()
    nano = NanoBackbone.from_base()
    connector = Connector(nano.hidden_size)
    connector.opinions.weight[:2] = N_STATISTICS**0.5 * torch.eye(2)
    save_file(connector.state_dict(), folder / CONNECTOR_FILE)
    write_first_estimates(folder, {aspect: FirstEstimate(3.0, 0.5) for aspect in Aspect})
    torch.manual_seed(0)
    predictor = Predictor(QUICK.shape(nano.hidden_size, nano.vocab_size)).with_linear_change(0.5, 3.0)
    save_predictor(predictor, folder, QUALITY)
    write_card(
        Card("old", "1", "nano", "drawings", "", {QUALITY: SCALE}, {QUALITY: predictor.config}), folder
    )


def drawn(folder: Path) -> list[Path]:
    """Drawings in all lights, the last of which nobody annotates."""
    paths = []
    for number in range(TRAIN + TEST + FRESH):
        rng = Random(number)
        image = draw(rng.choice(SHAPES), rng.choice(list(COLOURS)), 64, number)
        paths.append(folder / f"{number}.png")
        ImageEnhance.Brightness(image).enhance(rng.uniform(0.4, 1.6)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def loop(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A model describes images, people correct it, and it is retrained."""
    folder = tmp_path_factory.mktemp("words")
    before, run = folder / "before", folder / "run"
    write_checkpoint(before)
    paths, cache = drawn(folder), HiddenCache(run / "hidden")
    samples = [
        Sample(str(n), path, f"number {n}", split="test" if n >= TRAIN else "train")
        for n, path in enumerate(paths[: TRAIN + TEST])
    ]
    variants = own_variants(samples, [QUALITY])
    describe(variants, "nano", before, cache)
    keys = [variant.key(QUALITY, backbone_id("nano", before)) for variant in variants]
    states = cache.states(keys)
    predictor = load_predictor(before, QUALITY, read_card(before).predictors[QUALITY])
    said = []
    for sample, key in zip(samples, keys, strict=True):
        text = " ".join(each for each in sentences(cache.entries[key].description) if each not in STRUCK)
        (by_model,) = predict(predictor, [states[key]])
        mos = {QUALITY: SCALE.clamp(by_model + MISSING_POINTS)}
        said.append(replace(sample, mos=mos, descriptions={QUALITY: text}, raters={QUALITY: 1}))
    export = write_export(folder / "export", said)
    assert main([*retrain(run, before, export), "--register", str(folder / "models")]) == 0
    (candidate,) = candidates(folder / "models")
    return Loop(before, run, export, candidate, paths[-FRESH:])


def retrain(run: Path, before: Path, export: Path) -> list[str]:
    command = ["run", str(CORRECTIONS), "--run", str(run), "--set", f"start={before}"]
    return [*command, "--add-annotations", str(export)]


def test_errors_that_people_always_correct_become_rare_on_images_that_nobody_saw(loop: Loop) -> None:
    told = {}
    for when, folder in (("before", loop.before), ("after", loop.candidate.folder)):
        assessor = Assessor.from_pretrained(folder)
        told[when] = [assessor.assess(path, "a drawing").aspects[QUALITY] for path in loop.fresh]

    def measured(measure: Callable[[AspectResult], float]) -> tuple[float, float]:
        before, after = (fmean(map(measure, told[when])) for when in ("before", "after"))
        return before, after

    struck = measured(lambda each: bool(STRUCK & set(sentences(each.description))))
    assert struck[0] >= 0.4 and struck[1] <= 0.5 * struck[0]
    scores = measured(lambda each: each.mos)
    assert abs(scores[0] + MISSING_POINTS - scores[1]) < 0.5 * MISSING_POINTS
    tones = measured(lambda each: tone(each.description))
    assert tones[1] > tones[0], "words praise more where people's scores are higher"


def test_the_comparison_has_the_words(loop: Loop) -> None:
    words = loop.candidate.comparison.words
    assert words.n == TEST and words.worse == ""
    assert words.after.loss < words.before.loss
    assert words.after.tone_error < words.before.tone_error
    assert words.before.grounded == words.after.grounded == 1.0
    assert words.sentence in str(loop.candidate.comparison)
    old = {**loop.candidate.comparison.to_dict()}
    del old["words"]
    assert Comparison.from_dict(old).words is None, "as registered by an earlier version"


def test_what_changed_most_has_the_new_words_of_an_aspect_that_keeps_its_predictor_too(
    loop: Loop, tmp_path: Path
) -> None:
    before, run, other = tmp_path / "before", tmp_path / "run", Aspect.AUTHENTICITY
    shutil.copytree(loop.before, before)
    shutil.copytree(loop.run / "hidden", run / "hidden")
    card = read_card(before)
    save_predictor(load_predictor(before, QUALITY, card.predictors[QUALITY]), before, other)
    scales, predictors = ({**each, other: each[QUALITY]} for each in (card.scales, card.predictors))
    write_card(replace(card, scales=scales, predictors=predictors), before)
    command = [*retrain(run, before, loop.export), "--register", str(tmp_path / "models")]
    assert main(command) == 0
    changed = candidates(tmp_path / "models")[0].comparison.changed
    changes = [image.change for image in changed]
    assert len(changed) == 10 and changes == sorted(changes, reverse=True)
    assert all([score.aspect for score in image.scores] == [QUALITY, other] for image in changed)
    assert all(image.scores[1].mos is None for image in changed)
    assert any(image.scores[1].texts for image in changed)


def test_hidden_states_of_the_same_words_stay_as_they_were(loop: Loop) -> None:
    request = Request(open_image(loop.fresh[0]), (Conversation.open(QUALITY, None).describe("Sharp."),))
    old, new = (NanoBackbone.load(folder) for folder in (loop.before, loop.candidate.folder))
    assert old.head_adapter is None and new.head_adapter is not None
    assert torch.equal(old.encode([request])[0], new.encode([request])[0])


def test_what_was_learned_once_is_not_forgotten(loop: Loop) -> None:
    """Later the model's own words no longer show what it had to unlearn."""
    learned = HeadAdapter.read(loop.candidate.folder)
    head = torch.randn(NanoBackbone.from_base().vocab_size, learned.down.shape[1])
    states, ids = torch.randn(60, head.shape[1]), torch.randint(len(head), (60,))
    nothing_new = DescriptionTokens(
        states, ids, torch.full_like(ids, -1), torch.ones(60), torch.arange(60) // 6
    )
    fitted = fit_head_adapter(head, learned, nothing_new, WordsConfig(epochs=1, lr=1e-9))
    logits = torch.zeros(60, len(head))
    before, after = (each.add_to(logits.clone(), states) for each in (learned, fitted))
    assert before.abs().max() > 0.1 and torch.allclose(before, after, atol=1e-4)


def test_words_that_got_worse_do_not_serve(loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    people = read_annotations(loop.export).samples
    contrary = [
        replace(sample, descriptions={QUALITY: "zzz zz z zzzz." * 4}) if sample.split == "train" else sample
        for sample in people
    ]
    export, run = write_export(tmp_path / "export", contrary), tmp_path / "run"
    shutil.copytree(loop.run / "hidden", run / "hidden")
    assert main([*retrain(run, loop.before, export), "--until", "words"]) == 0
    assert "Words: as before, for people's descriptions became less likely" in capsys.readouterr().out
    opened = RunFolder.open(run)
    assert opened.backbone_folder == loop.before and opened.words_compared.worse


class Killed(BaseException):
    """Nothing is done after it."""


def test_what_was_killed_between_new_words_and_their_comparison_goes_on(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(loop.run / "hidden", run / "hidden")
    command = [*retrain(run, loop.before, loop.export), "--until", "words"]
    with monkeypatch.context() as patch:
        patch.setattr(words, "write_json", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            main(command)
    killed = RunFolder.open(run)
    assert (killed.words_folder / "backbone").is_dir() and not killed.has_words
    with pytest.raises(InputError, match="Run `words` first"):
        _ = killed.backbone_folder
    assert main(command) == 0
    opened = RunFolder.open(run)
    assert opened.words_compared == RunFolder.open(loop.run).words_compared
    assert opened.backbone_folder == opened.words_folder / "backbone"


def test_too_few_descriptions_leave_words_as_they_are(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    people = read_annotations(loop.export).samples
    few = [replace(s, descriptions={}) if n < TRAIN - 29 else s for n, s in enumerate(people)]
    command = retrain(tmp_path / "run", loop.before, write_export(tmp_path / "export", few))
    assert main([*command, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "30 images with descriptions by people are needed beside held-out ones, and there are 29" in shown
    assert main([*retrain(tmp_path / "run", loop.before, loop.export), "--plan"]) == 0
    assert f"learn from {TRAIN + TEST} descriptions by people; at most about" in capsys.readouterr().out


class TalkingBackbone(TinyBackbone):
    """Always says the same; what it learns is in its vision encoder."""

    @classmethod
    def load(cls, folder: Path, progress: object = None, placement: object = None) -> Self:
        return cls()

    def describe(self, requests: Sequence[Request], stop: object = None) -> Iterator[Generation]:
        rows = [(request.image, each) for request in requests for each in request.conversations]
        for row in range(len(rows)):
            yield Generation(row, "It is fine.", Rating.FAIR, torch.zeros(4, self.hidden_size))


def test_other_backbones_learn_with_their_vision_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # of other tests in this process
    monkeypatch.setitem(BACKBONE_CLASSES, "tiny", TalkingBackbone)
    people = [
        replace(
            sample,
            descriptions={QUALITY: "Not sharp."},
            raters={QUALITY: 1},
            split="test" if n < 5 else "train",
        )
        for n, sample in enumerate(drawings(tmp_path / "drawn", 35, SCALE, [QUALITY]))
    ]
    run = tmp_path / "run"
    command = ["run", str(CORRECTIONS), "--run", str(run), "--set", "backbone=tiny", "--set", "start=null"]
    command += ["--set", "words.finetune.adapter_lr=0.02", "--until", "words"]
    assert main([*command, "--add-annotations", str(write_export(tmp_path / "export", people))]) == 0
    opened = RunFolder.open(run)
    assert opened.words_compared.after.loss < opened.words_compared.before.loss - 0.05
    assert (opened.backbone_folder / "eye-adapter").is_dir()
    assert main([*command, "--add-annotations", str(tmp_path / "export")]) == 0, "it is done"
