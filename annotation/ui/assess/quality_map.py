"""Where the assessed image looks bad: a map of one aspect over the image, on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from annotation.ui import messages, theme
from annotation.ui.assess.correct import AssessedImage
from annotation.ui.assess.runs import CLOCK_INTERVAL, ModelRun, Runs, RunStage, RunState
from annotation.ui.images import Upload
from annotation.ui.model_service import ModelLoader, WaitingLine
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from m3agiqa.images import data_url
from m3agiqa.quality_map import QualityMap

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor

NO_MAP = "off"
IMAGE_FORGOTTEN = "The server no longer has this image; assess it again to see where it looks bad."
MAPPED_ASPECTS = tuple(aspect for aspect in Aspect if not aspect.needs_prompt)


class MapRun(ModelRun):
    """The map of an image that has been assessed."""

    def __init__(self, upload: Upload, assessed: RunState, loader: ModelLoader, line: WaitingLine) -> None:
        assert assessed.assessment is not None and assessed.card is not None
        super().__init__(assessed.assessment.prompt or "", loader, line)
        self._upload, self._assessment = upload, assessed.assessment
        self._fingerprint = assessed.card.fingerprint

    @property
    def subject(self) -> str:
        return f"the parts of {self._upload.name}"

    @property
    def shown(self) -> Iterator[tuple[Path, str, Iterable[Aspect]]]:
        return iter(())  # it tells no answer that the cards have not told

    def _judge(self, assessor: Assessor) -> None:
        if assessor.card.fingerprint != self._fingerprint:
            raise InputError("Another model is in service by now; assess the image again.")
        image, stop = self._upload.image(), self._stop.is_set
        quality_map = assessor.quality_map(image, self._assessment, self._report, stop)
        self._update(stage=RunStage.FINISHED, quality_map=quality_map)

    def _report(self, done: int, total: int) -> None:
        self._update(scored=done, total=total, counted="parts")


class MapHandlers:
    """What happens where the map is chosen; `runs` are those of the tab, as each visitor has one at most."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def offer(self, assessed: AssessedImage | None) -> tuple[dict, str]:
        """No map yet, of an image that is assessed; without one there is nothing to choose."""
        return gr.update(value=NO_MAP, interactive=assessed is not None), ""

    async def show(
        self, choice: Any, assessed: AssessedImage | None, request: gr.Request
    ) -> AsyncIterator[Any]:
        """The map of the chosen aspect, and how far it is meanwhile; it is computed once an assessment.

        A newer choice ends the answer to an older one, whose event may still run.
        """
        visitor = request.session_hash or ""
        if assessed is None:  # the server has forgotten it: it has started anew, or a day has passed
            yield messages.message(IMAGE_FORGOTTEN) if choice in MAPPED_ASPECTS else ""
            return
        assessed.latest_map_choice = this_choice = object()
        if choice not in MAPPED_ASPECTS:
            self.runs.stop(visitor)
            yield ""
            return
        if assessed.quality_map is None:
            run = MapRun(assessed.upload, assessed.state, self.runs.loader, self.runs.line)
            self.runs.start(visitor, run)
            try:
                async for state in run.follow(CLOCK_INTERVAL):
                    if assessed.latest_map_choice is not this_choice:
                        break
                    yield _progress(state)
            finally:
                self.runs.forget(visitor, run)
            assessed.quality_map = assessed.quality_map or run.state.quality_map
        if assessed.latest_map_choice is not this_choice:
            yield gr.skip()  # else Gradio sends the last value of this event again at its end
        elif assessed.quality_map is not None:
            yield map_html(assessed.quality_map, Aspect(choice))


def _progress(state: RunState) -> str:
    if state.error:
        return f'<p role="alert">{escape(state.error)}</p>'
    if state.stage is not RunStage.ASSESSING:
        return f'<p role="status">{escape(messages.doing(state))}</p>'
    return (
        f'<label class="note">{escape(messages.doing(state))} <progress max="{state.total or 1}" '
        f'value="{state.scored}"></progress></label>'
    )


def map_html(quality_map: QualityMap, aspect: Aspect) -> str:
    """The overlay as an SVG of the image's size, and its legend; nothing where the aspect is not judged."""
    if aspect not in quality_map.scores:
        return f'<p role="alert">This model does not judge {aspect}.</p>'
    (width, height), (left, top, across, down) = quality_map.size, quality_map.worst(aspect)
    url = data_url(quality_map.overlay(aspect), "PNG")
    lowest, place = min(quality_map.scores[aspect]), quality_map.worst_place(aspect)
    return (
        f'<div class="overlay"><svg role="img" aria-label="Map of {aspect}: worst at the {place}"'
        f' viewBox="0 0 {width} {height}" style="max-width:{width}px;max-height:{height}px">'
        f'<image href="{url}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f'<rect x="{left}" y="{top}" width="{across}" height="{down}"/></svg></div>'
        f'<p class="note" role="status" title="{lowest:+.2f}. {escape(quality_map.method)}">'
        f"<span>Worst: <b>{place}</b></span></p>"
    )


def map_choice() -> tuple[gr.Radio, gr.HTML]:
    """The components: what to show, and the map. They are seen while an assessment can be mapped."""
    choices = [("Off", NO_MAP), *((aspect.capitalize(), str(aspect)) for aspect in MAPPED_ASPECTS)]
    choice = gr.Radio(
        choices, value=NO_MAP, label="Where it looks bad", interactive=False, elem_id="map-choice"
    )
    return choice, theme.html("", elem_id="quality-map")
