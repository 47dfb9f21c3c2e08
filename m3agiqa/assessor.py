"""Backbone and predictors together: an image and its prompt in, three descriptions and MOS out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev

from PIL import Image
from torch import Tensor

from m3agiqa.aspects import Aspect
from m3agiqa.assessment import MOS_DIGITS, AspectResult, Assessment, DescriptionDelta, Event
from m3agiqa.backbones.base import (
    Backbone,
    ChecksElements,
    Delta,
    Generation,
    KnowsWords,
    MapsQuality,
    Request,
    readable_prompt,
)
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.checkpoint.card import Card, read_card
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.checkpoint.resolve import checkpoint_named
from m3agiqa.checkpoint.revisions import Revision
from m3agiqa.conversation import MAX_PROMPT, Conversation, normalized_prompt
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, M3AgiqaError, Stopped
from m3agiqa.images import ImageSource, open_image
from m3agiqa.occlusion import occlusion_map
from m3agiqa.predictor.model import Prediction, Predictor
from m3agiqa.prompt_elements import CheckedElement, prompt_elements
from m3agiqa.quality_map import QualityMap, Report
from m3agiqa.ranking import Ranking, ranked_as_assessed
from m3agiqa.threads import follow_load


class Assessor:
    """`Assessor.from_pretrained("nano").assess(image, prompt)` is the whole API."""

    def __init__(
        self,
        backbone: Backbone,
        predictors: dict[Aspect, Predictor],
        card: Card,
        others: Mapping[Aspect, Sequence[Predictor]] | None = None,
    ) -> None:
        self.backbone = backbone
        self.predictors = predictors
        self.card = card
        self.others = others or {}
        """Predictors of other seeds, for the spread."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "nano",
        progress: Progress | None = None,
        *,
        quantize: Quantization | None = None,
        device: str | None = None,
        revision: Revision | None = None,
    ) -> Assessor:
        """Load a checkpoint: a shipped or published one by its name, one of the Hugging Face Hub by
        organisation/name, or one from a folder.

        `quantize` and `device` as in Placement. `revision` is a branch, tag or commit of what comes from the
        Hub, or one for each repository that is named, as in {"organisation/name": "commit"}. Raises
        InputError for an unknown name or revision, WeightsError for missing or changed files, or too little
        memory.
        """
        placement = Placement(device, quantize)
        folder = checkpoint_named(name_or_path, progress, revision, placement)
        card = read_card(folder)
        if quantize:  # other states and so other scores
            card = replace(card, version=f"{card.version} in {quantize}")
        backbone = load_backbone(card.backbone, folder, progress, placement)
        predictors = {
            aspect: load_predictor(folder, aspect, config) for aspect, config in card.predictors.items()
        }
        others = {
            aspect: [load_predictor(folder, aspect, config, number) for number in range(1, card.seeds)]
            for aspect, config in card.predictors.items()
        }
        return cls(backbone, predictors, card, others)

    def assess(
        self, image: ImageSource, prompt: str | None = None, aspects: Sequence[str] | None = None
    ) -> Assessment:
        """Judge one image; see `stream`."""
        *_, assessment = self.stream(image, prompt, aspects)
        assert isinstance(assessment, Assessment)
        return assessment

    def stream(
        self,
        image: ImageSource,
        prompt: str | None = None,
        aspects: Sequence[str] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Yield deltas of all aspects as they are generated, then their results, last the Assessment.

        `aspects` are members of Aspect or their names, one or several; without them all are judged, except
        correspondence where there is no prompt. Of a prompt that is too long for the model its beginning is
        read; see AspectResult.read_characters. Raises InputError for what cannot be judged, and Stopped once
        `stop` answers True.
        """
        started = time.perf_counter()
        follow_load()
        request = self._request(image, prompt, aspects)
        chosen = _aspects(request)
        results = {}
        for output in self.backbone.describe([request], stop):
            aspect = chosen[output.row]
            if isinstance(output, Delta):
                yield DescriptionDelta(aspect, output.text)
                continue
            (predicted,) = self._predict(aspect, [output.hidden])
            results[aspect] = self._result(aspect, output, *predicted, request, prompt)
            yield results[aspect]
        yield self._assessment(image, prompt, request, results, time.perf_counter() - started)

    def rank(
        self,
        images: Sequence[ImageSource],
        prompt: str | None = None,
        weights: Mapping[Aspect, float] | None = None,
    ) -> Ranking:
        """Judge 2 to 24 images of one prompt and put them in order; see m3agiqa.ranking.

        `weights` of the aspects in the overall score: all the same by default. What cannot be read, or comes
        twice, is in `left_out`. Raises InputError for other numbers of images, and where none can be judged.
        """
        *_, ranking = ranked_as_assessed(self, images, normalized_prompt(prompt), weights)
        return ranking

    def quality_map(
        self,
        image: ImageSource,
        assessment: Assessment | None = None,
        report: Report = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> QualityMap:
        """Where an image looks bad, in quality and authenticity; see m3agiqa.quality_map.

        By the backbone itself, or by covering one part after another, which takes as long as several
        assessments; the image's own `assessment` then saves one. `report` is told how far it is. Raises
        InputError for what cannot be mapped, and Stopped once `stop` answers True.
        """
        follow_load()
        opened = open_image(image)
        if isinstance(self.backbone, MapsQuality):
            return self.backbone.quality_map(opened, report, stop)
        known = assessment or self.assess(opened)
        aspects = [aspect for aspect in known.aspects if not aspect.needs_prompt]
        prompt = known.prompt and readable_prompt(self.backbone, opened, known.prompt)
        conversations = [
            Conversation.open(aspect, prompt).describe(known.aspects[aspect].description)
            for aspect in aspects
        ]

        def judge(shown: Image.Image) -> dict[Aspect, float]:
            states = self.backbone.encode([Request(shown, tuple(conversations))])
            predicted = (
                self.predictors[aspect].predict(s) for aspect, s in zip(aspects, states, strict=True)
            )
            return dict(zip(aspects, predicted, strict=True))

        scale = self.card.scales[aspects[0]]
        return occlusion_map(opened, judge, scale.high - scale.low, report, stop)

    def assess_all(
        self,
        subjects: Sequence[tuple[ImageSource, str | None]],
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Assessment | M3AgiqaError]:
        """Judge several images with their prompts at once, in far less time than one after another.

        What cannot be judged leaves the others alone: in its place stands the error that `assess` raises.
        Numbers differ from those of `assess` by rounding. Raises Stopped once `stop` answers True.
        """
        started = time.perf_counter()
        follow_load()
        requests: dict[int, Request] = {}
        judged: dict[int, Assessment | M3AgiqaError] = {}
        for index, (image, prompt) in enumerate(subjects):
            try:
                requests[index] = self._request(image, prompt)
            except M3AgiqaError as error:
                judged[index] = error
        failed = None
        try:
            judged |= self._judge(subjects, requests, started, stop)
        except Stopped:
            raise
        except M3AgiqaError as error:  # of one of them
            # Without the traceback, which holds what was computed: where that was too much, memory is needed.
            failed = type(error)(str(error))
        if failed and len(requests) == 1:
            judged[next(iter(requests))] = failed
        elif failed:
            for index in requests:
                (judged[index],) = self.assess_all([subjects[index]], stop)
        return [judged[index] for index in range(len(subjects))]

    def _judge(
        self,
        subjects: Sequence[tuple[ImageSource, str | None]],
        requests: dict[int, Request],
        started: float,
        stop: Callable[[], bool],
    ) -> dict[int, Assessment]:
        """Assessments of some of the subjects, by their numbers."""
        rows = [(index, aspect) for index, request in requests.items() for aspect in _aspects(request)]
        results: dict[int, dict[Aspect, AspectResult]] = {index: {} for index in requests}
        generations: dict[Aspect, dict[int, Generation]] = {}
        for output in self.backbone.describe(list(requests.values()), stop) if requests else ():
            if isinstance(output, Generation):
                index, aspect = rows[output.row]
                generations.setdefault(aspect, {})[index] = output
        for aspect, outputs in generations.items():
            predicted = self._predict(aspect, [output.hidden for output in outputs.values()])
            for (index, output), each in zip(outputs.items(), predicted, strict=True):
                given = subjects[index][1]
                results[index][aspect] = self._result(aspect, output, *each, requests[index], given)
        seconds = (time.perf_counter() - started) / max(len(requests), 1)
        return {
            index: self._assessment(*subjects[index], request, results[index], seconds)
            for index, request in requests.items()
        }

    def _request(
        self, image: ImageSource, prompt: str | None, aspects: Sequence[str] | None = None
    ) -> Request:
        prompt = normalized_prompt(prompt)
        chosen = self._choose(aspects, prompt)
        opened = open_image(image)
        if prompt:
            prompt = readable_prompt(self.backbone, opened, prompt[:MAX_PROMPT])
        conversations = tuple(Conversation.open(aspect, prompt) for aspect in chosen)
        return Request(opened, conversations)

    def _predict(self, aspect: Aspect, hidden: Sequence[Tensor]) -> list[tuple[Prediction, float | None]]:
        """For conversations about an aspect, and the spread of MOS over predictors of other seeds."""
        first, *others = (
            predictor.predict_all(hidden)
            for predictor in (self.predictors[aspect], *self.others.get(aspect, ()))
        )
        return [
            (one, stdev([one.mos, *(each.mos for each in more)]) if more else None)
            for one, *more in zip(first, *others, strict=True)
        ]

    def _result(
        self,
        aspect: Aspect,
        output: Generation,
        prediction: Prediction,
        spread: float | None,
        request: Request,
        given: str | None,
    ) -> AspectResult:
        """`given` is the whole prompt, of which the request may have the beginning alone."""
        scale = self.card.scales[aspect]
        prompt = request.conversations[0].prompt if aspect.needs_prompt else None
        knows_words = not isinstance(self.backbone, KnowsWords) or self.backbone.knows_words(prompt or "")
        unknown_prompt = prompt is not None and not knows_words
        return AspectResult(
            aspect,
            output.description,
            output.rating,
            mos=scale.clamp(round(prediction.mos, MOS_DIGITS)),
            raw_mos=prediction.mos,
            scale=scale,
            spread=spread,
            pooled=tuple(prediction.pooled.tolist()),
            calibration=self.card.calibration.get(aspect),
            unknown_prompt=unknown_prompt,
            read_characters=len(prompt) if prompt and prompt != normalized_prompt(given) else None,
            elements=() if unknown_prompt else self._elements(prompt, request.image),
        )

    def _elements(self, prompt: str | None, image: Image.Image | None) -> tuple[CheckedElement, ...]:
        """Those of the prompt, by a model that can tell them."""
        if not (isinstance(self.backbone, ChecksElements) and image):
            return ()
        elements = prompt_elements(prompt)
        return tuple(self.backbone.check_elements(image, elements)) if elements else ()

    def _assessment(
        self,
        image: ImageSource,
        prompt: str | None,
        request: Request,
        results: dict[Aspect, AspectResult],
        seconds: float,
    ) -> Assessment:
        prompt = normalized_prompt(prompt)
        return Assessment(
            image=_name(image),
            prompt=prompt and prompt[:MAX_PROMPT],
            aspects={aspect: results[aspect] for aspect in _aspects(request)},  # not in order of finishing
            model=self.card.title,
            learned_from=self.card.learned_from,
            seconds=seconds,
        )

    def _choose(self, aspects: Sequence[str] | None, prompt: str | None) -> list[Aspect]:
        known = list(self.predictors)
        if aspects is None:
            return [aspect for aspect in known if prompt or not aspect.needs_prompt]
        aspects = [aspects] if isinstance(aspects, str) else aspects
        missing = [aspect for aspect in aspects if aspect not in known]
        if missing or not aspects:
            raise InputError(
                f"{self.card.title} judges {', '.join(known)}; "
                f"it cannot judge {', '.join(missing) or 'nothing'}."
            )
        return list(dict.fromkeys(map(Aspect, aspects)))


def _aspects(request: Request) -> list[Aspect]:
    return [conversation.aspect for conversation in request.conversations if conversation.aspect]


def _name(image: ImageSource) -> str | None:
    return str(image) if isinstance(image, str | Path) else None
