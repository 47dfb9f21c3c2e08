"""Training in epochs that can be interrupted after any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from m3agiqa.files import latest_folder, replace_folder
from training.parallel import progress_bar

STATE_FILE = "state.pt"


class Stateful(Protocol):
    """A module, an optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def train_in_epochs(
    epoch: Callable[[int], float], epochs: int, parts: Mapping[str, Stateful], state: Path, label: str
) -> None:
    """Call `epoch`, which returns its mean loss, with the number of each that was not done before.

    The state of all `parts` is kept in the folder `state` after each of them.
    """
    done, folder = 0, latest_folder(state)
    if folder:
        kept = torch.load(folder / STATE_FILE, weights_only=True)
        done = kept["done"]
        for name, part in parts.items():
            part.load_state_dict(kept[name])

    def save(to: Path) -> None:
        torch.save(
            {**{name: part.state_dict() for name, part in parts.items()}, "done": done}, to / STATE_FILE
        )

    with progress_bar(None, label, total=epochs, start=done) as progress:  # type: ignore[var-annotated]
        for number in range(done, epochs):
            loss = epoch(number)
            done = number + 1
            replace_folder(state, save)
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}")
