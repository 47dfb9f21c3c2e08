"""The Failure cases tab's handlers, without a browser."""

import base64
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from seeded_cases import add, judge, picture, say, write_run
from signed_in import SignedIn
from sqlalchemy import func, select
from waiting import wait_until

from annotation.failures.filters import Order, Plot, View
from annotation.failures.image_map import ImageMaps
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.models import QueueEntry
from annotation.ui.access import Access, Role, SpaceAccess
from annotation.ui.annotate.prefetch import Prefetch
from annotation.ui.context import Studio
from annotation.ui.failures import cards, tab
from annotation.ui.failures.tab import (
    CONTROL_NAMES,
    HIDDEN_ANSWERS,
    NO_SCORES,
    NOTHING_YET,
    FailuresHandlers,
    failures_tab,
)
from annotation.ui.model_service import ModelLoader
from m3agiqa.aspects import Aspect

OF_RUN = {"data": "run:ffffffffffff", "model": "run:one/report/predictions.csv"}
SHOWN = ("message", "agreement", "scatter", "list", "detail", "link", "slice", "case")
BOTH = {Aspect.QUALITY: 4.0, Aspect.AUTHENTICITY: 3.0}


@pytest.fixture
def studio(store: Store, loader: ModelLoader, tmp_path: Path) -> Studio:
    """Two items: a red one that is far off in quality, and a green one that is not."""
    for colour, quality in (("red", 1.0), ("green", 3.5)):
        item = add(store, colour, f"a {colour} <b>square</b>", "dalle" if colour == "red" else None)
        judge(store, item, BOTH)
        judge(store, item, {Aspect.QUALITY: 2.0}, "second 1.0")
        say(store, item, {Aspect.QUALITY: quality}, "Ann Bee", description="Mine & yours", tags=("blur",))
    return Studio(Settings(data=tmp_path, runs=tmp_path / "runs"), store, Access(), loader)


@pytest.fixture
def handlers(studio: Studio) -> FailuresHandlers:
    return FailuresHandlers(studio, Prefetch(studio))


def as_role(studio: Studio, role: Role | None) -> FailuresHandlers:
    signed_in = Studio(studio.settings, studio.store, SignedIn(role, "mallory"), studio.loader)
    return FailuresHandlers(signed_in, Prefetch(signed_in))


def asked(**query: str) -> SimpleNamespace:
    return SimpleNamespace(query_params=query, username="mallory")


def values(**changes: object) -> list[object]:
    """Of the controls: of the database's first model, unless something else is said."""
    return [getattr(View(**{"data": "db", "model": "db:1", **changes}), field.name) for field in fields(View)]


def shown(outputs: tuple) -> dict[str, str]:
    return dict(zip(SHOWN, outputs[-len(SHOWN) :], strict=True))


def run_row(image: Path) -> dict[str, object]:
    return {"sample": "s1", "image": image, "aspect": "quality", "mos": 3, "predicted": 2}


def said(html: str) -> str:
    """The sentence in a message."""
    return re.sub(r"<[^>]+>", "", html)


def colour_of(detail: str) -> tuple[int, ...]:
    """Of the middle of the image in a detail."""
    url = re.search(r'src="data:image/jpeg;base64,([^"]+)"', detail)[1]
    image = Image.open(io.BytesIO(base64.b64decode(url)))
    return image.getpixel((image.width // 2, image.height // 2))


def test_the_worst_case_is_open_first(handlers: FailuresHandlers) -> None:
    page = shown(handlers.show(asked(), *values()))
    assert page["case"] == "1|quality"
    assert page["scatter"].count("<circle") == page["list"].count("<li>") == 2
    assert colour_of(page["detail"])[0] > 200
    assert "Case 1 of 2" in page["detail"]
    assert page["detail"].count('<section class="aspect') == 1, "authenticity has no human score yet"
    assert "2 more judgements" in page["agreement"]


def test_all_texts_are_escaped(handlers: FailuresHandlers) -> None:
    page = "".join(shown(handlers.show(asked(), *values())).values())
    assert "<b>square</b>" not in page and escape("<b>square</b>") in page
    assert "Mine &amp; yours" in page


def test_a_click_opens_the_case_and_nothing_else_changes(handlers: FailuresHandlers) -> None:
    event = SimpleNamespace(case="2|quality")
    message, _, detail, link, case = handlers.choose(asked(), event, *values(order=Order.BEST))
    assert said(message) == "" and case == "2|quality"
    red, green, _ = colour_of(detail)
    assert green > 100 > red
    assert "case=2%7Cquality" in link and "order=best" in link
    assert 'data-case="1|quality">Next' in detail, "the neighbours are those of the order"


@pytest.mark.parametrize("case", ["9|quality", "1|beauty", "", "<script>", "1|authenticity"])
def test_a_case_that_is_not_there_is_told(handlers: FailuresHandlers, case: str) -> None:
    message, *rest = handlers.choose(asked(), SimpleNamespace(case=case), *values())
    assert "no longer among the selected" in said(message)
    assert rest == [gr.skip()] * 4


def test_a_link_reopens_its_view(handlers: FailuresHandlers) -> None:
    view = View(data="db", model="db:1", other="db:2", aspect="quality", least=0.5, order=Order.GAIN)
    first = shown(handlers.show(asked(), *values(**asdict(view))))
    assert 'data-filters="2"' in first["link"], "aspect and least leave cases out, the others do not"
    query = re.search(r'href="\?([^"]+)"', first["link"])[1].replace("&amp;", "&")
    opened, *outputs = handlers.open(asked(**dict(parse_qsl(query))), False, *values(aspect="authenticity"))
    updates = dict(zip([field.name for field in fields(View)], outputs, strict=False))
    assert opened
    assert {
        name: updates[name]["value"] for name in ("data", "model", "other", "aspect", "least", "order")
    } == {"data": "db", "model": "db:1", "other": "db:2", "aspect": "quality", "least": 0.5, "order": "gain"}
    assert shown(outputs) == first


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ({"data": "run:0"}, "data set"),
        ({"model": "db:77"}, "model version"),
        ({"tag": "once given"}, "tag"),
        ({"slice": "generator: nobody"}, "group of cases"),
        ({"case": "77|quality"}, "case"),
    ],
)
def test_a_link_to_what_is_gone_says_so_and_shows_the_rest(
    handlers: FailuresHandlers, gone: dict[str, str], told: str
) -> None:
    _, *outputs = handlers.open(asked(**{"data": "db", "model": "db:1", **gone}), False, *values())
    assert f"s {told} is no longer there" in said(shown(outputs)["message"])
    assert shown(outputs)["detail"]


def test_coming_back_to_the_tab_keeps_the_view_and_brings_what_is_new(
    handlers: FailuresHandlers, studio: Studio
) -> None:
    say(studio.store, 1, {Aspect.AUTHENTICITY: 1.0})
    _, *outputs = handlers.open(asked(aspect="quality"), True, *values(aspect="authenticity"))
    assert shown(outputs)["case"] == "1|authenticity"


def test_another_order_draws_no_points_again(handlers: FailuresHandlers) -> None:
    given = values(aspect="quality", order=Order.BEST)
    page, anew = shown(handlers.sort(asked(), *given)), shown(handlers.show(asked(), *given))
    assert page == {**anew, "agreement": gr.skip(), "scatter": gr.skip()}


def test_two_models_stand_side_by_side(handlers: FailuresHandlers) -> None:
    page = shown(handlers.show(asked(), *values(other="db:2", order=Order.GAIN)))
    assert "first 1.0 on quality" in page["detail"] and "second 1.0 on quality" in page["detail"]
    assert "second 1.0</b> is nearer to people in 1 of 2 cases" in page["agreement"]
    assert page["scatter"].count('class="nearer"') == page["scatter"].count('class="further"') == 1
    assert page["case"] == "1|quality"


def test_filters_that_leave_nothing_say_so(handlers: FailuresHandlers) -> None:
    page = shown(handlers.show(asked(), *values(text="no such prompt")))
    assert "No case matches" in page["scatter"] and page["detail"] == page["case"] == ""
    assert "nothing to download" in said(handlers.export(asked(), "", *values(text="no such prompt"))[0])
    assert "nothing to queue" in said(handlers.queue(asked(), "", 1, *values(text="no such prompt")))


def test_a_limit_that_is_none_is_told(handlers: FailuresHandlers) -> None:
    given = values()
    given[[field.name for field in fields(View)].index("least")] = -1
    for page in (shown(handlers.show(asked(), *given)), shown(handlers.arrange(asked(), *given))):
        assert "from 0 up" in said(page.pop("message"))
        assert list(page.values()) == [gr.skip()] * len(page), "what is there stays until the number is right"


def test_what_no_page_sends_is_refused(handlers: FailuresHandlers) -> None:
    for name, value in (("side", "sideways"), ("least", "much"), ("most", [1]), ("order", {"a": 1})):
        given = values()
        given[[field.name for field in fields(View)].index(name)] = value
        assert "reload" in said(shown(handlers.show(asked(), *given))["message"])
        assert "reload" in said(handlers.queue(asked(), "", 1, *given))
    for overlap in ("3", [1], {"a": 1}):
        assert "whole number" in said(handlers.queue(asked(), "", overlap, *values()))


def test_scores_that_are_all_alike_do_not_correlate_and_that_is_told(handlers: FailuresHandlers) -> None:
    assert "nothing can correlate" in shown(handlers.show(asked(), *values()))["agreement"]


# --- what can be missing -----------------------------------------------------------------------


def test_nothing_at_all_is_a_sentence(store: Store, loader: ModelLoader, tmp_path: Path) -> None:
    empty = Studio(Settings(data=tmp_path, runs=tmp_path / "x"), store, Access(), loader)
    handlers = FailuresHandlers(empty, Prefetch(empty))
    _, *outputs = handlers.open(asked(), False, *values())
    assert said(shown(outputs)["message"]) == escape(NOTHING_YET)
    judge(store, add(store), BOTH)
    _, *outputs = handlers.open(asked(), False, *values())
    assert said(shown(outputs)["message"]) == NO_SCORES
    assert said(shown(as_role(empty, Role.VIEWER).show(asked(), *values()))["message"]) == NO_SCORES
    write_run(tmp_path / "x", "one", [run_row(tmp_path / "x.png")])
    _, *outputs = handlers.open(asked(data="run:ffffffffffff"), False, *values())
    assert shown(outputs)["case"] == "s1|quality"


def test_an_image_that_was_moved_is_told_without_its_place(
    studio: Studio, handlers: FailuresHandlers
) -> None:
    for path in studio.settings.images.rglob("*.png"):
        path.unlink()
    detail = shown(handlers.show(asked(), *values()))["detail"]
    assert "no longer where it was" in detail and "second" not in detail
    assert str(studio.settings.data) not in detail


def test_a_broken_report_is_told_and_the_database_can_still_be_chosen(
    studio: Studio, handlers: FailuresHandlers, tmp_path: Path
) -> None:
    write_run(tmp_path / "runs", "one", [{"sample": 1}])
    outputs = handlers.arrange(asked(), *values(**OF_RUN))
    assert "lacks the columns" in said(shown(outputs)["message"])
    assert [key for _, key in outputs[0]["choices"]] == ["db", "run:ffffffffffff"]
    assert shown(handlers.arrange(asked(), *values()))["detail"]


def test_a_damaged_image_of_a_run_is_told(handlers: FailuresHandlers, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture("red")[:60])
    write_run(tmp_path / "runs", "one", [run_row(tmp_path / "x.png")])
    page = shown(handlers.arrange(asked(), *values(**OF_RUN)))
    assert "damaged or cut off" in page["detail"]
    assert "None of the images" in said(handlers.queue(asked(), "", 1, *values(**OF_RUN)))


def test_who_may_annotate_has_the_model_assess_what_people_have_scored(
    studio: Studio, loader: ModelLoader
) -> None:
    """The served model is another than the two that have assessed the items."""
    loader.start()
    loader.wait(lambda: False, lambda state: None)
    handlers = as_role(studio, Role.ANNOTATOR)
    button = len(CONTROL_NAMES)
    offered = handlers.arrange(asked(), *values())[button]
    assert offered["visible"] and "2 images" in offered["value"]
    assert "2 images are being assessed" in handlers.assess_scored(asked())["value"]
    deadline = time.monotonic() + 20
    while handlers.prefetch.behind() and time.monotonic() < deadline:
        time.sleep(0.05)
    handlers.prefetch.stop()
    assert not handlers.arrange(asked(), *values())[button]["visible"]
    assert not as_role(studio, Role.VIEWER).arrange(asked(), *values())[button]["visible"]


# --- what is taken out, and by whom ------------------------------------------------------------


def test_the_selection_is_exported(handlers: FailuresHandlers) -> None:
    _, file = handlers.export(asked(), "", *values(text="red"))
    assert file.endswith("failure-cases.csv")
    content = Path(file).read_text("utf-8-sig")
    header, row = content.splitlines()[:2]
    assert header.startswith("item,image,original_file,aspect,prompt") and row.startswith("1,")
    assert "Ann Bee" not in content


def test_ticked_cases_are_taken_alone(handlers: FailuresHandlers) -> None:
    _, file = handlers.export(asked(), "2|quality\n99|quality", *values())
    rows = Path(file).read_text("utf-8-sig").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["2"]
    assert said(handlers.queue(asked(), "2|quality", 1, *values())).startswith("1 image is")
    assert "tick cases anew" in said(handlers.queue(asked(), "99|quality", 1, *values())), "not all others"


def test_a_group_of_cases_that_stands_out_shows_its_cases_alone(
    studio: Studio, handlers: FailuresHandlers, tmp_path: Path
) -> None:
    rows = [
        {
            **run_row(tmp_path / "gone.png"),
            "sample": f"s{i}",
            "generator": ("dalle", "<vq>")[i % 2],
            "mos": 3.0,
        }
        | {"predicted": 3.0 + (0.1 + i % 3 / 20) * (10 if i % 2 else 1)}
        for i in range(60)
    ]
    write_run(studio.settings.runs, "one", rows)
    given = values(**OF_RUN)
    page = shown(handlers.show(asked(), *given))
    assert 'data-slice="generator: &lt;vq&gt;" aria-pressed="false"' in page["agreement"]
    chosen = shown(handlers.choose_slice(asked(), SimpleNamespace(slice="generator: <vq>"), *given))
    assert chosen["slice"] == "generator: <vq>" and chosen["list"].count("<li>") == 30
    assert "slice=generator%3A+%3Cvq%3E" in chosen["link"] and 'aria-pressed="true"' in chosen["agreement"]
    back = handlers.choose_slice(
        asked(), SimpleNamespace(slice=""), *values(**OF_RUN, slice="generator: <vq>")
    )
    assert shown(back)["list"].count("<li>") == 60


def looking_by_colour() -> Callable[[Sequence[Image.Image]], np.ndarray]:
    """An encoder that sees the mean colour."""

    def encode(images: Sequence[Image.Image]) -> np.ndarray:
        means = np.array([np.asarray(image).mean((0, 1)) for image in images])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    return encode


def test_a_map_of_the_images_and_what_is_chosen_on_it(
    studio: Studio, handlers: FailuresHandlers, tmp_path: Path
) -> None:
    handlers.maps = ImageMaps(tmp_path / "vectors.npz", looking_by_colour)
    given = values(plot=Plot.IMAGES)
    first = shown(handlers.show(asked(), *given))
    assert "Looking at the images" in first["scatter"] and first["list"].count("<li>") == 2
    wait_until(lambda: 'class="scatter panel map"' in str(shown(handlers.follow(asked(), *given))["scatter"]))
    page = shown(handlers.follow(asked(), *given))
    assert page["scatter"].count("<circle") == 2 and "plot=images" in page["link"]
    assert "No two of these images are nearly alike" in page["agreement"]
    alike = shown(handlers.choose_slice(asked(), SimpleNamespace(slice="similar to: 2"), *given))
    assert re.findall(r'value="(\d)\|quality"', alike["list"]) == ["2", "1"], "the most alike first"
    assert "Shown: images like 2" in alike["agreement"] and "similar+to" in alike["link"]
    everything = "area: 0,0 1,0 1,1 0,1"
    marked = shown(handlers.choose_slice(asked(), SimpleNamespace(slice=everything), *given))
    assert re.findall(r'value="(\d)\|quality"', marked["list"]) == ["1", "2"], "the worst first, as sorted"
    nothing = shown(handlers.choose_slice(asked(), SimpleNamespace(slice="near-duplicates"), *values()))
    assert "No case matches" in nothing["scatter"] and "Show all cases" in nothing["agreement"]


def test_the_list_turns_its_pages_with_the_open_case(
    studio: Studio, handlers: FailuresHandlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "MAX_LISTED", 2)
    monkeypatch.setattr(tab, "MAX_LISTED", 2)
    rows = [{**run_row(tmp_path / "x.png"), "sample": f"s{i}", "predicted": 4 + i / 10} for i in range(5)]
    write_run(studio.settings.runs, "one", rows)

    def listed(html: str) -> list[str]:
        return re.findall(r'value="(s\d)\|quality"', html)

    page = shown(handlers.show(asked(), *values(**OF_RUN)))["list"]
    assert listed(page) == ["s4", "s3"] and "Cases 1 to 2 of 5" in page and "Previous" not in page
    turned = re.search(r'data-case="([^"]+)">Next', page)[1]
    _, page, *_ = handlers.choose(asked(), SimpleNamespace(case=turned), *values(**OF_RUN, case="s4|quality"))
    assert listed(page) == ["s2", "s1"] and "Previous" in page and "Next" in page
    _, page, *_ = handlers.choose(asked(), SimpleNamespace(case="s1|quality"), *values(**OF_RUN, case=turned))
    assert page == gr.skip(), "it is on the page already"
    link = handlers.show(asked(), *values(**OF_RUN, case="s0|quality"))
    assert listed(shown(link)["list"]) == ["s0"]


def test_a_view_under_a_name_opens_again_for_everybody(studio: Studio, handlers: FailuresHandlers) -> None:
    opened_to_all(studio)
    ann, bob = (as_role(studio, role) for role in (Role.ANNOTATOR, Role.VIEWER))
    message, listed = ann.save_view(
        asked(), "<worst>", *values(text="red", order=Order.OVER, case="1|quality")
    )
    assert said(message) == "" and "&lt;worst&gt;" in listed and "data-remove" in listed
    assert said(ann.save_view(asked(), " ", *values())[0]) == "The view has no name; give one."
    assert said(bob.save_view(asked(), "mine", *values())[0]) and "mine" not in bob.views(asked())
    assert 'data-open="1"' in bob.views(asked())
    views, *outputs = bob.click_view(asked(), SimpleNamespace(open="1"))
    assert shown(outputs)["list"].count("<li>") == 1 and "order=over" in shown(outputs)["link"]
    assert said(shown(outputs)["message"]) == ""
    _, *outputs = handlers.click_view(asked(), SimpleNamespace(open="77"))
    assert "no longer there" in said(shown(outputs)["message"])
    views, *_ = handlers.click_view(asked(), SimpleNamespace(remove="1"))
    assert views == handlers.views(asked()) == ""


def test_an_annotator_queues_the_selection(studio: Studio) -> None:
    opened_to_all(studio)
    told = as_role(studio, Role.ANNOTATOR).queue(asked(), "", 3, *values(text="red"))
    assert said(told) == "1 image is in the annotation queue for 3 annotators each."
    with studio.store.database.reading() as session:
        assert session.execute(select(QueueEntry.item_id, QueueEntry.overlap)).all() == [(1, 3)]


def test_images_of_a_run_come_into_the_store_with_the_queue(
    studio: Studio, handlers: FailuresHandlers, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(picture("blue"))
    write_run(tmp_path / "runs", "one", [run_row(tmp_path / "x.png")])
    told = handlers.queue(asked(), "", 2, *values(**OF_RUN))
    assert "1 image is in the annotation queue" in said(told)
    with studio.store.database.reading() as session:
        [entry] = session.scalars(select(QueueEntry))
        assert studio.store.images.path(entry.item.image.file).read_bytes() == picture("blue")
        assert (entry.overlap, entry.item.source) == (2, "Runs on drawings (ffffff)")


@pytest.mark.parametrize("overlap", [None, 0, -1, 1.5, 1000, float("nan")])
def test_a_number_of_annotators_that_is_none_is_told(
    handlers: FailuresHandlers, overlap: float | None
) -> None:
    assert "whole number" in said(handlers.queue(asked(), "", overlap, *values()))


def opened_to_all(studio: Studio) -> None:
    assert said(as_role(studio, Role.ADMIN).open_answers(asked(), True)) == ""


def test_a_viewer_sees_scores_but_no_names_and_cannot_queue(studio: Studio) -> None:
    opened_to_all(studio)
    handlers = as_role(studio, Role.VIEWER)
    page = shown(handlers.show(asked(), *values()))
    assert "MOS of people" in page["detail"] and "Person 1" in page["detail"]
    assert "Ann Bee" not in "".join(page.values())
    assert "takes an annotator" in said(handlers.queue(asked(), "", 1, *values()))
    with studio.store.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(QueueEntry)) == 0
    buttons, open_to_all = handlers.arrange(asked(), *values())[len(fields(View)) - 1 :][:2]
    assert buttons["visible"] is False and open_to_all["visible"] is False


def test_names_are_for_admins_and_oneself_is_you(studio: Studio) -> None:
    say(studio.store, 1, {Aspect.QUALITY: 2.0}, "mallory")
    annotators = shown(as_role(studio, Role.ANNOTATOR).show(asked(), *values()))["detail"]
    assert "Person 1" in annotators and "You" in annotators
    assert "Ann Bee" not in annotators and "mallory" not in annotators
    admins = shown(as_role(studio, Role.ADMIN).show(asked(), *values()))["detail"]
    assert "Ann Bee" in admins and "mallory" in admins


def blind(studio: Studio) -> Studio:
    return replace(studio, settings=replace(studio.settings, blind=True))


@pytest.mark.parametrize("role", [Role.VIEWER, Role.ANNOTATOR])
@pytest.mark.parametrize("always_blind", [False, True])
def test_answers_stay_hidden_until_one_has_scored_the_image_oneself(
    studio: Studio, role: Role, always_blind: bool
) -> None:
    if always_blind:
        studio = blind(studio)
        opened_to_all(studio)  # which such a server disregards
    handlers = as_role(studio, role)
    _, *opened = handlers.open(asked(), False, *values())
    arranged = handlers.arrange(asked(), *values(other="db:2", tag="blur"))
    for page in (shown(opened), shown(arranged), shown(handlers.show(asked(), *values()))):
        assert said(page.pop("message")) == HIDDEN_ANSWERS
        assert not any(page.values())
    assert "blur" not in str(arranged) and "dalle" not in str(arranged)
    message, *rest = handlers.choose(asked(), SimpleNamespace(case="1|quality"), *values())
    assert "no longer among the selected" in said(message) and rest == [gr.skip()] * 4
    assert handlers.export(asked(), "", *values())[1] is None
    assert shown(as_role(studio, Role.ADMIN).show(asked(), *values()))["detail"]

    say(studio.store, 2, {Aspect.QUALITY: 2.0}, "mallory")
    page = shown(handlers.show(asked(), *values()))
    assert page["case"] == "2|quality" and page["list"].count("<li>") == 1
    assert "Mine &amp; yours" in page["detail"]
    assert "1 more open once you have scored them yourself" in page["agreement"]


def test_an_admin_opens_all_answers_and_closes_them_again(studio: Studio) -> None:
    opened_to_all(studio)
    annotator, admin = as_role(studio, Role.ANNOTATOR), as_role(studio, Role.ADMIN)
    assert shown(annotator.show(asked(), *values()))["case"] == "1|quality"
    assert admin.arrange(asked(), *values())[len(CONTROL_NAMES) + 2] == gr.update(visible=True, value=True)
    assert not FailuresHandlers(studio, Prefetch(studio)).arrange(asked(), *values())[len(CONTROL_NAMES) + 2][
        "visible"
    ], "nobody else is there"
    assert "takes an admin" in said(annotator.open_answers(asked(), False))
    admin.open_answers(asked(), False)
    assert said(shown(annotator.show(asked(), *values()))["message"]) == HIDDEN_ANSWERS


def test_where_everybody_scores_blind_training_runs_stay_open(studio: Studio, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one", [run_row(tmp_path / "x.png")])
    handlers = as_role(blind(studio), Role.VIEWER)
    assert shown(handlers.arrange(asked(), *values(**OF_RUN)))["case"] == "s1|quality"


def test_a_training_run_opens_no_answers_to_images_that_people_are_asked_about(
    studio: Studio, tmp_path: Path
) -> None:
    """A retraining's report has people's mean scores of what it held out."""
    (tmp_path / "red.png").write_bytes(picture("red"))
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    rows = [run_row(tmp_path / "red.png"), {**run_row(tmp_path / "own.png"), "sample": "s2"}]
    write_run(tmp_path / "runs", "one", rows)
    viewer, admin = as_role(studio, Role.VIEWER), as_role(studio, Role.ADMIN)
    page = shown(viewer.arrange(asked(), *values(**OF_RUN)))
    assert page["list"].count("<li>") == 1 and page["case"] == "s2|quality"
    assert "1 more open once you have scored them yourself" in page["agreement"]
    assert shown(admin.arrange(asked(), *values(**OF_RUN)))["list"].count("<li>") == 2
    say(studio.store, 1, {Aspect.QUALITY: 2.0}, "mallory")
    assert shown(viewer.arrange(asked(), *values(**OF_RUN)))["list"].count("<li>") == 2


def test_the_public_of_a_space_does_not_see_what_others_have_brought(studio: Studio) -> None:
    space = SpaceAccess(frozenset(), has_login=True)
    on_space = Studio(studio.settings, studio.store, space, studio.loader)
    handlers = FailuresHandlers(on_space, Prefetch(on_space))
    request = SimpleNamespace(query_params={}, request=SimpleNamespace(scope={}))
    page = shown(handlers.show(request, *values()))
    assert "Sign in to see this" in said(page.pop("message")) and not any(page.values())


def test_who_is_no_user_any_more_sees_nothing(studio: Studio) -> None:
    handlers = as_role(studio, None)
    outputs = [
        shown(handlers.show(asked(), *values())),
        shown(handlers.arrange(asked(), *values())),
        shown(handlers.open(asked(), False, *values())),
    ]
    for page in outputs:
        assert "sign in again" in said(page.pop("message")) and not any(page.values())
    message, *rest = handlers.choose(asked(), SimpleNamespace(case="1|quality"), *values())
    assert "sign in again" in said(message) and rest == [gr.skip()] * 4
    message, file = handlers.export(asked(), "", *values())
    assert "sign in again" in said(message) and file is None


def test_no_event_of_the_tab_is_an_open_endpoint(studio: Studio) -> None:
    with gr.Blocks() as demo, gr.Tab("Failure cases") as tab:
        failures_tab(studio, tab, demo, Prefetch(studio))
    assert demo.get_api_info()["named_endpoints"] == {}
