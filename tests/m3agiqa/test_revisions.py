"""Revisions as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3agiqa import InputError
from m3agiqa.checkpoint.revisions import check_revision, parse_revision, revision_of

NAMES = st.text("abcdef-._/", min_size=1, max_size=12)


@given(st.dictionaries(NAMES, NAMES, min_size=1))
def test_each_repository_has_its_own(revisions: dict[str, str]) -> None:
    text = " , ".join(f"{name} = {revision}" for name, revision in revisions.items())
    found = parse_revision(text)
    assert found == revisions
    assert all(revision_of(name, found) == revision for name, revision in revisions.items())
    assert revision_of("not/named", found) is None


@given(NAMES)
def test_one_is_for_all(revision: str) -> None:
    assert parse_revision(f" {revision} ") == revision == revision_of("any/name", revision)


@pytest.mark.parametrize("text", [None, "", " ", ","])
def test_nothing_is_none(text: str | None) -> None:
    assert parse_revision(text) is None


@pytest.mark.parametrize("text", ["v1,v2", "v1,a/b=v2", "a/b=", "=v1", "a/b=v1,a/b=v2"])
def test_what_is_no_revision_is_reported(text: str) -> None:
    with pytest.raises(InputError, match="revision"):
        parse_revision(text)


def test_a_repository_that_is_no_part_is_named() -> None:
    check_revision("v1", "some model", ["a/b"])
    check_revision({"a/b": "v1"}, "some model", ["a/b", "c/d"])
    with pytest.raises(InputError, match=r"some model is not made of x/y, .* made of a/b, c/d\."):
        check_revision({"a/b": "v1", "x/y": "v1"}, "some model", ["a/b", "c/d"])
