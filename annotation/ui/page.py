"""What the page does differently from Gradio's own, so that a small machine serves many people."""

from __future__ import annotations

from typing import Any

import gradio as gr
import httpx
from gradio.block_function import BlockFunction
from gradio.blocks import Block, BlocksConfig
from gradio.data_classes import BlocksConfigDict
from gradio.renderable import Renderable
from gradio.state_holder import SessionState

QUEUE_INTERVAL = 0.02
"""Seconds between two looks for events that wait; Gradio's 0.001 keep 7 % of a core busy."""


class PageConfig(BlocksConfig):
    """Works out once how each part of the page begins.

    Gradio does so for every visit and every call over HTTP, while everybody waits: tens of milliseconds for
    this page's 219 parts.
    """

    def __init__(self, page: gr.Blocks) -> None:
        super().__init__(page)
        self._known: dict[int, dict[str, Any]] = {}

    def __copy__(self) -> BlocksConfig:
        """That of a visit."""
        visit = super().__copy__()
        visit.config_for_block = self._config_for_visit  # type: ignore[method-assign,assignment]
        return visit

    def _config_for_visit(
        self, number: int, rendered: list[int], part: Block, renderable: Renderable | None = None
    ) -> dict[str, Any]:
        if renderable is not None or self.blocks.get(number) is not part:
            return self.config_for_block(number, rendered, part, renderable)
        if number not in self._known:
            self._known[number] = self.config_for_block(number, rendered, part)
        known = self._known[number]
        return {**known, "props": dict(known["props"])}  # a visit puts its own values there


class Page(gr.Blocks):
    """Blocks that use neither the processor nor a connection while nothing happens, and little for a visit.

    Gradio's pages hold a connection open to be noticed when they are closed. A browser allows six connections
    to a server, so that the seventh tab would stay blank. What a page is for ends by itself: its run with the
    run's own stream, its values in the server's memory after their time.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.default_config = PageConfig(self)

    def queue(self, *args: Any, **options: Any) -> Page:
        super().queue(*args, **options)
        self._queue.sleep_when_free = self._queue.progress_update_sleep_when_free = QUEUE_INTERVAL
        return self

    def get_config_file(self) -> BlocksConfigDict:
        return {**super().get_config_file(), "connect_heartbeat": False}

    async def preprocess_data(
        self,
        block_fn: BlockFunction,
        inputs: list[Any],
        state: SessionState | None,
        explicit_call: bool = False,
    ) -> list[Any]:
        """A sentence where a file cannot be had: Gradio itself gives no reason."""
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except (ValueError, OSError, httpx.HTTPError) as error:
            sentence = "A file cannot be taken; upload it first (/gradio_api/upload), or give a public URL."
            raise gr.Error(sentence, print_exception=False) from error
