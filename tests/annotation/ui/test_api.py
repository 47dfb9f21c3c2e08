from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from signed_in import SignedIn
from waiting import run_async

from annotation.ui.api import ApiHandlers
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from m3agiqa.errors import M3AgiqaError

QUOTA = "ZeroGPU quota exceeded: You have exceeded your ZeroGPU quota (40s requested vs. 7s left)."


async def last(values: AsyncIterator[Any]) -> Any:
    return [value async for value in values][-1]


def test_what_the_page_refuses_programs_are_refused_in_the_same_words(
    studio: Studio, upload: Upload, assessor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SimpleNamespace(username=None), {"path": str(upload.path), "orig_name": upload.name}, "a square"
    assert run_async(last(ApiHandlers(studio).assess(*given)))["aspects"]["quality"]["mos"] == 4.0

    def no_gpu(*_: Any, **__: Any) -> Any:
        raise M3AgiqaError(QUOTA)

    monkeypatch.setattr(assessor, "stream", no_gpu)
    with pytest.raises(gr.Error, match="ZeroGPU quota exceeded"):
        run_async(last(ApiHandlers(studio).assess(*given)))
    with pytest.raises(gr.Error, match="no longer a user"):
        run_async(last(ApiHandlers(replace(studio, access=SignedIn(None))).assess(*given)))
