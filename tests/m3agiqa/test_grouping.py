import pytest

from m3agiqa.grouping import connected_groups, fold_prompt


@pytest.mark.parametrize(
    ("marks", "groups"),
    [
        ([], []),
        (["", ""], [0, 1]),
        (["a", "b", "a"], [0, 1, 0]),
        (["a", "b", "ab", "c"], [0, 0, 0, 3]),
        (["a", "ab", "bc", "d", "cd"], [0, 0, 0, 0, 0]),
    ],
    ids=["none", "no marks", "shared", "joined later", "a chain"],
)
def test_groups_are_named_by_their_first_item(marks: list[str], groups: list[int]) -> None:
    assert connected_groups(marks) == groups


def test_spelling_makes_no_other_prompt() -> None:
    assert fold_prompt(" A  Cat\n") == "a cat" and fold_prompt(None) == ""
