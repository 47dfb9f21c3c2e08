"""Repositories of the Hugging Face Hub on this machine.

What was downloaded is kept in the Hub's own cache (HF_HOME): a broken connection goes on where it broke, a
new start with the files that are not complete. Later starts need no network; with HF_HUB_OFFLINE=1 none is
tried. Folders of one's own can stand in for repositories: the environment variable M3AGIQA_HUB_FOLDER names
the folder in which organisation/name is looked for first.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from tqdm.auto import tqdm

from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, M3AgiqaError, WeightsError, reason

RepositoryKind = Literal["model", "dataset"]

FOLDER_VARIABLE = "M3AGIQA_HUB_FOLDER"
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
TOKEN_STATUSES = (401, 403, 404)  # of a Hub that has no such repository for this token
TOKEN_ADVICE = (
    "It takes a token that may write there: run hf auth login, or set HF_TOKEN and start the server again."
)
KEPT_ADVICE = "It is kept here; push it again."
SAMPLED_PIECES, PIECE_BYTES = 64, 2**16
"""Of a large file so many pieces of so many bytes say which file it is."""

# They warn where no file has a name that was asked for, which whoever needs the file says better, and of each
# repository that is taken from the cache because there is no network, which is as it should be.
for _module in ("_snapshot_download", "hf_api"):
    logging.getLogger(f"huggingface_hub.{_module}").setLevel(logging.ERROR)


class NotOnHub(WeightsError):
    """There is no such repository, or it is not shown to this user."""


def snapshot(
    repository: str,
    files: Sequence[str] = ("*",),
    progress: Progress | None = None,
    revision: str | None = None,
    fetch: bool = True,
    kind: RepositoryKind = "model",
) -> Path:
    """The local folder of a repository's files (shell patterns) at a branch, tag or commit.

    Without `revision` it is "main". A folder that stands in for the repository is taken as it is. Without
    `fetch` the network is not asked. Raises WeightsError saying what to do.
    """
    folder = stand_in(repository)
    if folder is not None:
        return folder
    with _in_words(repository, revision):
        path = snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(files),
            local_files_only=not fetch,
            tqdm_class=_reporting_to(progress, f"Downloading {repository}"),
        )
        return Path(path)


def push_folder(
    folder: Path,
    repository: str,
    kind: RepositoryKind,
    tag: str,
    *,
    readme: str | None = None,
    without: Sequence[str] = (),
) -> str:
    """Make a repository's files those of a folder, in one commit with this tag; its address.

    A repository that is not there is made, for its owners alone. `readme` takes the place of README.md;
    `without` are shell patterns of files that stay here. Raises InputError.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"{repository[:80]!r} is no repository on the Hub; give it as organisation/name.")
    if get_token() is None:
        raise InputError(
            f"{tag} was not pushed, because there is no token for the Hugging Face Hub where this runs. "
            f"{TOKEN_ADVICE}"
        )
    try:
        api = HfApi()
        api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        contents: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in files}
        if readme is not None:
            contents["README.md"] = readme.encode()
        kept = {
            name: content
            for name, content in contents.items()
            if not any(fnmatch(name, pattern) for pattern in without)
        }
        there = api.list_repo_files(repository, repo_type=kind)
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationDelete(name) for name in there if name not in kept and name[0] != "."),
                *(CommitOperationAdd(name, content) for name, content in kept.items()),
            ],
            commit_message=tag,
            repo_type=kind,
        )
        api.create_tag(repository, tag=tag, revision=commit.oid, repo_type=kind, exist_ok=True)
    except HfHubHTTPError as error:
        answer = error.server_message or f"status {error.response.status_code}"
        advice = TOKEN_ADVICE if error.response.status_code in TOKEN_STATUSES else KEPT_ADVICE
        raise InputError(
            f"{tag} could not be pushed to {repository}, the Hub says: {answer.rstrip('.')}. {advice}"
        ) from error
    except Exception as error:  # of its HTTP client, of the name, of the disk
        raise InputError(
            f"{tag} could not be pushed to {repository}: {reason(error)}. {KEPT_ADVICE}"
        ) from error
    return commit.commit_url


def version_of(repository: str, revision: str | None = None) -> str:
    """The commit that a branch or tag stands for now, or stood for when the Hub could last be reached.

    Where a folder stands in for the repository it is the `folder_version` of that, and no revision may be
    asked for: InputError. Raises WeightsError saying what to do.
    """
    folder = stand_in(repository)
    if folder is None:
        with _in_words(repository, revision):
            return HfApi().resolve_revision(repository, revision=revision).resolved
    if revision is not None:
        raise without_revisions(repository, folder, FOLDER_VARIABLE)
    return folder_version(folder)


def stand_in(repository: str) -> Path | None:
    """The folder of one's own that stands in for a repository, if there is one."""
    root = os.environ.get(FOLDER_VARIABLE)
    if not root:
        return None
    if not Path(root).expanduser().is_dir():
        raise WeightsError(f"The environment variable {FOLDER_VARIABLE} names {root}, which is no folder.")
    folder = Path(root).expanduser() / repository
    return folder if folder.is_dir() else None


def without_revisions(repository: str, folder: Path, variable: str) -> InputError:
    """What to say where a revision is asked of a folder that an environment variable names."""
    return InputError(
        f"{repository} is taken from the folder {folder} (environment variable {variable}), which has no "
        "revisions. Leave its revision out, or unset the variable."
    )


def folder_version(folder: Path, files: Sequence[str] = ("*",)) -> str:
    """What tells a repository's folder from others: its commit, or else a hash of the files.

    Of large files only pieces are read, so that gigabytes take a moment.
    """
    if folder.parent.name == "snapshots" and COMMIT_HASH.fullmatch(folder.name):
        return folder.name  # that is how the Hub's cache is laid out
    digest = hashlib.sha256()
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, path in sorted(paths.items()):
        if name.startswith(".") or not any(fnmatch(name, pattern) for pattern in files):
            continue  # notes of the tools that have put the files there
        size = path.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(PIECE_BYTES, size // SAMPLED_PIECES)):
                file.seek(start)
                digest.update(file.read(PIECE_BYTES))
    return f"sha256:{digest.hexdigest()}"


def commit(version: str) -> str | None:
    """A version that is a commit; None for that of a folder of someone's own."""
    return version if COMMIT_HASH.fullmatch(version) else None


# --- what can go wrong -------------------------------------------------------------------------


@contextmanager
def _in_words(repository: str, revision: str | None) -> Iterator[None]:
    """Errors of the library as sentences."""
    at = f"{repository} at {revision}" if revision else repository
    try:
        yield
    except M3AgiqaError:
        raise
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{repository} has no revision {revision!r} on the Hugging Face Hub. Give one that it has (a "
            f"branch, a tag or a whole commit; for it alone, {repository}=REVISION), or leave it out."
        ) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository} is only for those who accepted its terms. Accept them on its page at "
            "huggingface.co, then run: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotOnHub(
            f"The Hugging Face Hub has no {repository}, or shows it only after: hf auth login"
        ) from error
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise WeightsError(
            f"{at} is not, or not wholly, on this machine, and the Hugging Face Hub cannot be reached. "
            "Connect to the network and start again without HF_HUB_OFFLINE; what was downloaded is kept."
        ) from error
    except Exception as error:  # of its HTTP client, of the Hub's storage, of the disk
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(at) from error
        raise WeightsError(
            f"{at} could not be downloaded: {reason(error)}. Start again; files that are complete are kept."
        ) from error


def _full(at: str) -> WeightsError:
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return WeightsError(
        f"There is no room for {at}: {shutil.disk_usage(place).free / 1e9:.1f} GB are free in {cache}. Free "
        "more, or set HF_HOME to a folder on a larger disk, and start again."
    )


def _reporting_to(progress: Progress | None, message: str) -> type[tqdm[Any]]:
    """A bar class that tells `progress`, if any, the share of bytes that is there, and prints nothing."""

    class Reporting(tqdm):  # type: ignore[type-arg] # no generic at runtime
        most: float = 0  # bytes; of what is received and what is written, two bars tell

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if progress and self.unit == "B" and self.total:
                Reporting.most = max(Reporting.most, self.n)
                done, total = min(Reporting.most, self.total), self.total
                progress(f"{message} ({done / 1e9:.1f} of {total / 1e9:.1f} GB)", done / total)
            return shown

    return Reporting
