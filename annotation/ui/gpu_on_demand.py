"""An assessor whose model gets a GPU of ZeroGPU for as long as one assessment takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from queue import Empty, Queue

import gradio as gr

from annotation.ui.zero_gpu import spaces
from m3agiqa.aspects import Aspect
from m3agiqa.assessment import Assessment, Event
from m3agiqa.assessor import Assessor
from m3agiqa.backbones.minicpm.slicing import Slicing, slice_grid
from m3agiqa.errors import M3AgiqaError, Stopped
from m3agiqa.images import ImageSource, opened
from m3agiqa.quality_map import QualityMap

log = logging.getLogger(__name__)

# What an assessment may take, not what most take; all of it counts against a visitor's quota.
START_SECONDS = 6  # to move the weights to the GPU
SECONDS_PER_ASPECT = 11  # to generate its description
SECONDS_PER_SLICE = 1  # to encode one for an aspect
STOP_CHECK_INTERVAL = 0.1  # seconds; `stop` is a function, which can only be asked again and again


class GpuError(M3AgiqaError):
    """No GPU could be had, or it was lost."""


def requested_duration(image: ImageSource, prompt: str | None, aspects: Sequence[str] | None) -> int:
    """Seconds of a GPU to ask for, by the aspects to judge and the slices that the image is cut into."""
    chosen = aspects or [aspect for aspect in Aspect if prompt or not aspect.needs_prompt]
    count = 1 if isinstance(chosen, str) else len(chosen)
    return START_SECONDS + count * (SECONDS_PER_ASPECT + SECONDS_PER_SLICE * _count_slices(image))


def _count_slices(image: ImageSource) -> int:
    """With the overview, as MiniCPM cuts images; other models have about as many visual tokens."""
    try:
        with opened(image) as picture:
            columns, rows = slice_grid(picture.size, Slicing()) or (0, 0)
    except Exception:  # whatever is wrong with it is told when it is judged
        return 1
    return 1 + columns * rows


class OnDemand(Assessor):
    """An assessor that gets a GPU for each assessment, and is called like any other."""

    def __init__(self, assessor: Assessor) -> None:
        super().__init__(assessor.backbone, assessor.predictors, assessor.card, assessor.others)

        def judge(
            image: ImageSource, prompt: str | None, aspects: Sequence[str] | None
        ) -> Iterator[Event | M3AgiqaError]:
            """What the process with the GPU does: it has the assessor from the fork, all else is pickled."""
            try:
                yield from assessor.stream(image, prompt, aspects)
            except M3AgiqaError as error:  # raised, no more than its class's name would come back
                yield error

        self._on_gpu = spaces.GPU(duration=requested_duration)(judge)

    def stream(
        self,
        image: ImageSource,
        prompt: str | None = None,
        aspects: Sequence[str] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """As Assessor.stream; `stop` also ends the wait for a GPU. Raises GpuError if there is none."""
        events: Queue[Event | Exception | None] = Queue()
        abandoned = threading.Event()

        def call() -> None:
            try:
                with closing(self._on_gpu(image, prompt, aspects)) as gpu_events:
                    for event in gpu_events:
                        if abandoned.is_set():
                            return  # being closed, it ends the work in the other process
                        events.put(event)
                events.put(None)
            except Exception as error:
                events.put(_as_gpu_error(error))

        # The visitor's request goes along: the GPU's time is theirs.
        threading.Thread(target=copy_context().run, args=(call,), name="zero-gpu", daemon=True).start()
        try:
            while (event := _next(events, stop)) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            abandoned.set()

    def assess_all(
        self,
        subjects: Sequence[tuple[ImageSource, str | None]],
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Assessment | M3AgiqaError]:
        """As Assessor.assess_all, a GPU for each: its time is limited."""
        return [self._assessed(image, prompt, stop) for image, prompt in subjects]

    def quality_map(self, *_: object) -> QualityMap:
        """Raises GpuError: a GPU is lent for an assessment, not for as many as covering parts takes."""
        raise GpuError("On ZeroGPU this model cannot be asked where an image looks bad; nano can.")

    def _assessed(
        self, image: ImageSource, prompt: str | None, stop: Callable[[], bool]
    ) -> Assessment | M3AgiqaError:
        try:
            *_, assessment = self.stream(image, prompt, stop=stop)
        except Stopped:
            raise
        except M3AgiqaError as error:
            return error
        assert isinstance(assessment, Assessment)
        return assessment


def _next(events: Queue[Event | Exception | None], stop: Callable[[], bool]) -> Event | Exception | None:
    while not stop():
        try:
            return events.get(timeout=STOP_CHECK_INTERVAL)
        except Empty:
            continue
    raise Stopped("Stopped on request.")


def _as_gpu_error(error: Exception) -> GpuError:
    """What `spaces` raises, as a sentence for the page."""
    if not isinstance(error, gr.Error):
        log.error("ZeroGPU failed", exc_info=error)
        return GpuError("ZeroGPU does not answer; try again in a minute. The app's log says more.")
    title, message = error.title, str(error.message).strip()
    if message == "GPU task aborted":
        return GpuError(
            "ZeroGPU took its GPU away before the assessment had ended, perhaps because it took longer than "
            "was asked for. Try again, or with a smaller image."
        )
    if title == "ZeroGPU worker error":  # the message is the name of an exception, which spaces has printed
        return GpuError(f"The model failed on the GPU ({message}); the app's log says more.")
    return GpuError(f"{title}: {message if message.endswith('.') else f'{message}.'}")
