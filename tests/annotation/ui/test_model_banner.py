"""The line on top of the page that says which model judges."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import gradio as gr

import app
from annotation.ui.context import Studio
from annotation.ui.model_service import ModelLoader


def test_an_open_page_hears_of_another_model_when_a_tab_is_opened(studio: Studio) -> None:
    def load(name: str, progress: object) -> SimpleNamespace:
        return SimpleNamespace(card=SimpleNamespace(title=name, learned_from="a test"))

    loader = ModelLoader("first", load)
    demo = app.build(Studio(studio.settings, studio.store, studio.access, loader))
    tabs = {block._id for block in demo.blocks.values() if isinstance(block, gr.Tab)}
    shows_model = [fn for fn in demo.fns.values() if [each.elem_id for each in fn.outputs] == ["model"]]
    [follow] = [
        fn for fn in shows_model if tabs <= {block for block, event in fn.targets if event == "select"}
    ]
    assert "load" in {event for _, event in follow.targets}, "and with the page"

    async def shown() -> list[str]:
        return [html async for html in follow.fn()]

    assert "<b>first</b>" in asyncio.run(shown())[-1]
    loader.switch("second")
    assert asyncio.run(shown())[0].startswith(
        '<p class="banner">Model <b>second</b>. Learned from a test.</p>'
    )
