"""Choosing among cases, and links to a choice."""

import math
from urllib.parse import parse_qsl

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotation.failures.error_table import Key, agreements, beside, cases
from annotation.failures.filters import (
    NOT_GIVEN,
    Nearer,
    Order,
    Side,
    View,
    Words,
    generators,
    place,
    select,
    tags,
)
from m3agiqa.aspects import RATING_WORDS, Aspect
from m3agiqa.errors import InputError


def table(*rows: dict) -> pd.DataFrame:
    """Cases on the scale from 1 to 5; what a row leaves out is unknown."""
    usual = {"aspect": "quality", "image": "x.png", "scale_low": 1.0, "scale_high": 5.0}
    return cases(pd.DataFrame([{"item": str(i), **usual, **row} for i, row in enumerate(rows)]))


FOUR = table(
    {"mos": 3.0, "predicted": 4.5, "generator": "dalle", "prompt": "A red CAT", "tags": ("missed flaw",)},
    {"mos": 3.0, "predicted": 2.0, "generator": "dalle", "prompt": "a dog", "spoken_rating": "poor"},
    {"mos": 2.0, "predicted": 2.1, "aspect": "authenticity", "spoken_rating": "excellent"},
    {
        "mos": 4.0,
        "predicted": 4.0,
        "prompt": "two cats",
        "spoken_rating": "good",
        "tags": ("missed flaw", "blur"),
    },
)


@pytest.mark.parametrize(
    ("view", "items"),
    [
        (View(), "0123"),
        (View(aspect="authenticity"), "2"),
        (View(side=Side.OVER), "02"),
        (View(side=Side.UNDER), "1"),
        (View(least=1.0), "01"),
        (View(most=0.5), "23"),
        (View(least=0.05, most=1.0), "12"),
        (View(generator="dalle"), "01"),
        (View(generator=NOT_GIVEN), "23"),
        (View(text=" cat "), "03"),
        (View(tag="missed flaw"), "03"),
        (View(tag="blur"), "3"),
        (View(words=Words.AGREE), "13"),
        (View(words=Words.DIFFER), "2"),
        (View(words=Words.FAR), "2"),
        (View(side=Side.OVER, text="cat"), "0"),
        (View(nearer=Nearer.OTHER), "0123"),  # there is no other
    ],
)
def test_a_filter_keeps_its_cases(view: View, items: str) -> None:
    assert sorted(select(FOUR, view)["item"]) == list(items)


@pytest.mark.parametrize(
    ("order", "items"),
    [(Order.WORST, "0123"), (Order.BEST, "3210"), (Order.OVER, "0231"), (Order.UNDER, "1320")],
)
def test_the_order_is_by_error(order: Order, items: str) -> None:
    assert "".join(select(FOUR, View(order=order))["item"]) == items


def test_the_choices_are_what_occurs() -> None:
    assert generators(FOUR) == ["dalle", NOT_GIVEN]
    assert tags(FOUR) == ["blur", "missed flaw"]


scores = st.floats(1, 5, allow_nan=False)
tables = st.lists(
    st.fixed_dictionaries(
        {
            "mos": scores,
            "predicted": scores,
            "aspect": st.sampled_from(Aspect).map(str),
            "spoken_rating": st.none() | st.sampled_from(RATING_WORDS).map(str),
            "prompt": st.none() | st.text(max_size=5),
            "generator": st.none() | st.sampled_from("ab"),
        }
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: table(*rows))
limits = st.none() | st.floats(0, 4)
views = st.builds(
    View,
    aspect=st.just("") | st.sampled_from(Aspect).map(str),
    side=st.sampled_from(Side),
    least=limits,
    generator=st.sampled_from(["", "a", NOT_GIVEN]),
    text=st.text(max_size=2),
    words=st.sampled_from(Words),
    order=st.sampled_from(Order),
    case=st.text(max_size=8),
)


@settings(max_examples=40, deadline=None)
@given(tables, views)
def test_every_selected_case_fits_and_no_other_does(cases: pd.DataFrame, view: View) -> None:
    def fits(row: tuple) -> bool:
        apart = row.words_apart
        return (
            view.aspect in ("", row.aspect)
            and {Side.ANY: True, Side.OVER: row.error > 0, Side.UNDER: row.error < 0}[view.side]
            and abs(row.error) >= (view.least or 0)
            and view.generator in ("", row.generator or NOT_GIVEN)
            and view.text.strip().casefold() in (row.prompt or "").casefold()
            and {Words.ANY: True, Words.AGREE: apart == 0, Words.DIFFER: apart >= 1, Words.FAR: apart >= 2}[
                view.words
            ]
        )

    selected = select(cases, view)
    assert sorted(selected["item"]) == sorted(row.item for row in cases.itertuples() if fits(row))
    if view.order is Order.WORST:
        assert selected["error"].abs().is_monotonic_decreasing


@settings(max_examples=40, deadline=None)
@given(tables)
def test_the_neighbours_lead_through_all_cases(cases: pd.DataFrame) -> None:
    selected = select(cases, View())
    here, seen = Key(selected["item"][0], selected["aspect"][0]), []
    assert place(selected, here).previous is None
    while here is not None:
        seen.append(here.item)
        after = place(selected, here).next
        assert after is None or place(selected, after).previous == here
        here = after
    assert seen == list(selected["item"])
    assert place(selected, Key("no such item", "quality")) is None


# --- links -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(views)
def test_a_link_leads_back_to_its_view(view: View) -> None:
    query = view.query()
    assert query.startswith("?tab=failures") and query.isascii() and " " not in query
    assert View.from_query(dict(parse_qsl(query[1:]))) == view


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from([*View.__dataclass_fields__, "tab", "x"]), st.text()))
def test_a_link_that_makes_no_sense_still_opens(query: dict[str, str]) -> None:
    view = View.from_query(query)
    assert select(FOUR, view) is not None
    assert View.from_query(dict(parse_qsl(view.query()[1:]))) == view


def test_limits_in_the_wrong_order_in_a_link_do_not_hide_everything() -> None:
    assert View.from_query({"least": "2", "most": "1"}) == View(least=2)


@pytest.mark.parametrize("limits", [{"least": -1.0}, {"most": math.nan}, {"least": 2.0, "most": 1.0}])
def test_limits_that_are_none_are_told(limits: dict) -> None:
    with pytest.raises(InputError, match="error"):
        View(**limits)


@settings(deadline=None)
@given(st.text(), st.sampled_from(Aspect))
def test_a_key_is_read_back(item: str, aspect: Aspect) -> None:
    key = Key(item, str(aspect))
    assert Key.parse(str(key)) == (key if item else None)


@pytest.mark.parametrize("text", [None, "", "7", "7|beauty", "|quality", 7])
def test_what_is_no_key_is_none(text: object) -> None:
    assert Key.parse(text) is None


# --- two models, and agreement -----------------------------------------------------------------


def test_two_models_are_compared_on_what_both_have_judged_and_on_one_scale() -> None:
    first = table(
        {"mos": 3.0, "predicted": 4.0}, {"mos": 3.0, "predicted": 3.5}, {"mos": 2.0, "predicted": 2.0}
    )
    percent = {"scale_low": 0.0, "scale_high": 100.0}
    second = table({"mos": 9.9, "predicted": 50.0, **percent}, {"mos": 9.9, "predicted": 0.0, **percent})
    both = beside(first, second)
    assert list(both["item"]) == ["0", "1"]
    assert list(both["other_predicted"]) == [3.0, 1.0]
    assert list(both["other_error"]) == [0.0, -2.0], "measured against the first table's MOS"
    assert list(both["gain"]) == [1.0, -1.5]
    assert list(select(both, View(nearer=Nearer.OTHER))["item"]) == ["0"]
    assert list(select(both, View(nearer=Nearer.FIRST))["item"]) == ["1"]
    assert list(select(both, View(order=Order.LOSS))["item"]) == ["1", "0"]


def test_images_of_other_data_with_the_same_names_are_not_compared() -> None:
    row = {"mos": 3.0, "predicted": 4.0}
    assert beside(table(row), table({**row, "image": "elsewhere.png"})).empty


def test_agreement_is_by_aspect() -> None:
    rows = [{"mos": m, "predicted": p} for m, p in [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]]
    alike = [{"mos": 3.0, "predicted": p, "aspect": "authenticity"} for p in (2.0, 2.5)]
    found = agreements(table(*rows, *alike))
    assert list(found) == ["quality", "authenticity"]
    assert found["quality"].srcc == pytest.approx(1) and found["quality"].plcc == pytest.approx(1)
    assert (found["quality"].bias, found["quality"].over) == (1.0, 3)
    assert math.isnan(found["authenticity"].srcc) and found["authenticity"].count == 2
