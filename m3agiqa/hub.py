"""Repositories of the Hugging Face Hub on this machine.

What was downloaded is kept in the Hub's own cache (HF_HOME), a broken download goes on where it stopped, and
later starts need no network; with HF_HUB_OFFLINE=1 none is tried.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from m3agiqa.errors import WeightsError
from m3agiqa.weights import Progress


def snapshot(
    repository: str,
    files: Sequence[str] = ("*",),
    progress: Progress | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """The local folder of a repository's files (shell patterns) at a branch, tag or commit.

    Without `revision` it is "main". `endpoint` is another server than huggingface.co.
    Raises WeightsError saying what to do.
    """
    shown = {"tqdm_class": _reporting_to(progress, f"Downloading {repository}")} if progress else {}
    at = f"{repository} at {revision}" if revision else repository
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(files), endpoint=endpoint, **shown
        )
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{repository} has no revision {revision!r}. Leave it out, or give a commit."
        ) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository} is only for those who accepted its terms. Accept them on its page at "
            "huggingface.co, then run: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"The Hugging Face Hub has no {at}, or shows it only after: hf auth login"
        ) from error
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{at} is not, or not wholly, on this machine, and the Hugging Face Hub cannot be reached. "
            "Connect to the network and start again without HF_HUB_OFFLINE; what was downloaded is kept."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"{at} could not be downloaded: {error}. Start again; what was downloaded is kept."
        ) from error
    return Path(folder)


def _reporting_to(progress: Progress, message: str) -> type[tqdm]:
    """A bar class that tells `progress` the share of bytes that is there, and prints nothing."""

    class Reporting(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B" and self.total:
                progress(message, min(self.n / self.total, 1.0))
            return shown

    return Reporting
