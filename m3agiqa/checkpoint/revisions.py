"""Which revision of which repository is wanted, where a model comes from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m3agiqa.errors import InputError

Revision = str | Mapping[str, str]
"""A branch, tag or commit of all repositories that a model is made of, or of each one named."""


def parse_revision(text: str | None) -> Revision | None:
    """A revision as people write it: "REVISION", or "REPOSITORY=REVISION" for each of some, with commas.

    None for an empty text. Raises InputError.
    """
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    named = [part for part in parts if "=" in part]
    if len(named) < len(parts):
        if len(parts) > 1:
            raise InputError(
                f"{text!r} is no revision: give one for all repositories, or REPOSITORY=REVISION for each."
            )
        return parts[0]
    revisions: dict[str, str] = {}
    for part in named:
        repository, _, revision = (piece.strip() for piece in part.partition("="))
        if not repository or not revision or revisions.get(repository, revision) != revision:
            raise InputError(
                f"{part!r} in {text!r} does not give a repository one revision. Write REPOSITORY=REVISION."
            )
        revisions[repository] = revision
    return revisions or None


def revision_of(repository: str, revision: Revision | None) -> str | None:
    """A repository's part of what was asked for."""
    return revision.get(repository) if isinstance(revision, Mapping) else revision


def check_revision(revision: Revision | None, model: str, repositories: Sequence[str]) -> None:
    """Raises InputError if a revision is asked of a repository that the model does not come from."""
    for name in revision if isinstance(revision, Mapping) else ():
        if name not in repositories:
            raise InputError(
                f"{model} is not made of {name}, for which a revision was given; it is made of "
                f"{', '.join(repositories)}."
            )
