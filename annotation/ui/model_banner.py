"""The line on top that follows the model's loading, then names the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import gradio as gr

from annotation.ui import messages
from annotation.ui.model_loader import ModelLoader

INTERVAL = 0.2  # seconds between two looks


def model_banner(loader: ModelLoader) -> gr.HTML:
    """Build the line."""
    return gr.HTML(messages.model_banner(loader.state), elem_id="model")


def follow_model(loader: ModelLoader, banner: gr.HTML, demo: gr.Blocks, tabs: Sequence[gr.Tab]) -> None:
    """Let the line follow the model whenever the page or a tab is opened; loading starts, if need be."""

    async def follow() -> AsyncIterator[str]:
        loader.start()
        while not (state := loader.state).over:
            yield messages.model_banner(state)
            await asyncio.sleep(INTERVAL)
        yield messages.model_banner(state)

    gr.on(
        [demo.load, *(tab.select for tab in tabs)],
        follow,
        outputs=banner,
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
