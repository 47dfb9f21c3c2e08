"""The line on top that follows the model's loading, then names the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import gradio as gr

from annotation.ui import notices
from annotation.ui.model_loader import ModelLoader

INTERVAL = 0.2  # seconds between two looks


def model_banner(loader: ModelLoader, demo: gr.Blocks) -> gr.HTML:
    """Build the line; it starts loading if that has not been done, and runs whenever a page is opened."""

    async def follow() -> AsyncIterator[str]:
        loader.start()
        while not (state := loader.state).over:
            yield notices.model_banner(state)
            await asyncio.sleep(INTERVAL)
        yield notices.model_banner(state)

    banner = gr.HTML(notices.model_banner(loader.state), elem_id="model")
    demo.load(
        follow, outputs=banner, show_progress="hidden", concurrency_limit=None, api_visibility="private"
    )
    return banner
