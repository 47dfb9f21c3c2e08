"""ZeroGPU of Hugging Face Spaces: a GPU for as long as one assessment takes, in a process of its own.

The server's process never has a GPU. `spaces` lets it load weights as if there were one, forks a process for
each call of a decorated function, and moves the weights there. For that it has to be imported before anything
asks torch for a GPU: the server imports this module as it starts, and torch only when it loads the model.
Where there is no ZeroGPU, `spaces` is not imported.
"""

from __future__ import annotations

import os

if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"):  # as spaces itself reads it
    import spaces
else:
    spaces = None

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the libraries behind it take seconds to import, in which the page can answer already
    from m3agiqa.assessor import Assessor

ON_ZERO_GPU = spaces is not None
FIRST_THREAD = threading.get_ident()  # which has imported spaces
CPU_BACKBONES = ("nano",)
"""Backbones that run on the CPU, wherever they are."""


def _nothing() -> None:
    """ZeroGPU ends a Space at its start if no function of it may ask for a GPU, whichever model it serves."""


if ON_ZERO_GPU:
    spaces.GPU(_nothing)
    # transformers would load in threads of its own, in which a real GPU would be looked for; see `loading`.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"


@contextmanager
def loading() -> Iterator[None]:
    """Within it, weights can go to "cuda" on ZeroGPU, whichever thread loads them."""
    if not ON_ZERO_GPU or threading.get_ident() == FIRST_THREAD:
        yield
        return
    from spaces.zero.torch.patching import dispatch_mode, function_mode

    with function_mode, dispatch_mode:  # the first thread is in them for good; to enter twice spoils weights
        yield


def on_demand(assessor: Assessor, device: str | None = None) -> Assessor:
    """The assessor as it has to be called here; the same one unless ZeroGPU lends its model a GPU."""
    if not ON_ZERO_GPU or device == "cpu" or assessor.card.backbone in CPU_BACKBONES:
        return assessor
    from annotation.ui.gpu_on_demand import OnDemand

    return OnDemand(assessor)
