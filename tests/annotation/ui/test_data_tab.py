"""Who sees which figures, and what an export takes with it."""

import csv
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from seeded_cases import add, crowd, pick, say
from signed_in import SignedIn
from sqlalchemy import select

from annotation.settings import Settings
from annotation.statistics.overview import overview
from annotation.store import Store
from annotation.store.models import AuditEntry
from annotation.ui import messages
from annotation.ui.access import Role
from annotation.ui.context import Studio
from annotation.ui.data import figures
from annotation.ui.data.export_versions import MAX_VERSIONS, ExportVersions
from annotation.ui.data.tab import DataHandlers, means_csv
from annotation.ui.model_service import ModelLoader
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError

REQUEST = None  # no handler here looks at the request itself
EVERYTHING = {
    "name": "mine",
    "aspects": list(Aspect),
    "min_raters": 1,
    "generators": [],
    "sources": [],
    "method": "p910",
    "gold": False,
    "all_texts": False,
}
PEOPLE = {"<ann>": 0.5, "bob": 0.0, "kim": -0.5}


@pytest.fixture
def handlers(store: Store, loader: ModelLoader, tmp_path: Path):
    def make(name: str = "kim", role: Role | None = Role.ADMIN) -> DataHandlers:
        return DataHandlers(Studio(Settings(data=tmp_path / "data"), store, SignedIn(role, name), loader))

    return make


def texts(shown: tuple[Any, ...]) -> str:
    return "\n".join(each for each in shown if isinstance(each, str))


def exported(handlers: DataHandlers, **changes: Any) -> tuple[str, Any, Any]:
    return handlers.export(REQUEST, *(EVERYTHING | changes).values())


class TestWhoSeesWhat:
    def test_an_empty_database_says_how_to_begin(self, handlers) -> None:
        _message, summary, *others = handlers().show(REQUEST)[:6]
        assert "There are no corrections yet" in summary
        assert others == [""] * 4
        assert "Corrections" in summary and ">0<" in summary

    def test_picks_are_counted_beside_chance(self, handlers, store: Store) -> None:
        items = [add(store, number) for number in range(4)]
        scores = dict(zip(items, (4.0, 3.0, 2.0, 1.0), strict=True))
        assert "Picks" not in texts(handlers().show(REQUEST))
        for person, best in (("ann", items[0]), ("bob", items[1])):
            pick(store, best, scores, person)
        shown = texts(handlers("guest", Role.VIEWER).show(REQUEST))
        assert "Current picks of 2 people" in shown and "bob" not in shown
        assert "<b>50%</b><small>of 2</small></td><td>25%</td>" in shown
        assert "<b>83%</b><small>of 6</small></td><td>50%</td>" in shown

    def test_viewers_see_counts_and_no_names(self, handlers, store: Store) -> None:
        crowd(store, 6, PEOPLE)
        shown = handlers("eve", Role.VIEWER).show(REQUEST)
        assert "Corrections" in texts(shown) and "Krippendorff" in texts(shown)
        assert not any(name in texts(shown) for name in ("ann&gt;", "bob", "kim", "Least certain"))
        assert not any(update.get("visible") for update in shown if isinstance(update, dict))

    def test_what_tells_nothing_or_contradicts_is_told(self, handlers, store: Store) -> None:
        items = [add(store, number) for number in range(5)]
        for item in items:
            say(store, item, {Aspect.QUALITY: 1.5}, "kim", description="Nice & <b>sharp</b>")
        say(store, items[0], {Aspect.QUALITY: 4.5}, "bob", description="Good.")
        say(store, items[1], {Aspect.QUALITY: 2.0}, "bob", description="Das Bild ist unscharf und dunkel.")
        admin = texts(handlers().show(REQUEST))
        assert "kim wrote “Nice &amp; &lt;b&gt;sharp&lt;/b&gt;” of the quality of 5 images." in admin
        assert "bob gave 1 description of a single word: “Good.”." in admin
        assert "bob gave 1 description in another language than English: “Das Bild ist" in admin
        assert "Image #1 (picture.png), quality: kim 1.5, bob 4.5." in admin
        annotator = texts(handlers("kim", Role.ANNOTATOR).show(REQUEST))
        assert "You wrote" in annotator and "bob" not in annotator and "Image #1" not in annotator
        assert "Worth a look" not in texts(handlers("eve", Role.VIEWER).show(REQUEST))

    def test_annotators_see_their_own_figures_and_nobody_elses(self, handlers, store: Store) -> None:
        crowd(store, 6, PEOPLE)
        shown = handlers("kim", Role.ANNOTATOR).show(REQUEST)
        assert "Your own figures" in texts(shown) and ">kim<" in texts(shown)
        assert "ann&gt;" not in texts(shown) and "bob" not in texts(shown)
        updates = [update for update in shown if isinstance(update, dict)]
        assert [update["visible"] for update in updates if "visible" in update].count(True) == 1
        assert updates[0]["visible"], "the images, without answers; no file, no form"

    def test_admins_see_all_with_names_escaped(self, handlers, store: Store) -> None:
        crowd(store, 6, PEOPLE)
        item = add(store, 99, prompt="<script>alert(1)</script>")
        for name in PEOPLE:
            say(store, item, {Aspect.CORRESPONDENCE: 1.0 if name == "bob" else 5.0}, name)
        text = texts(handlers().show(REQUEST))
        assert "&lt;ann&gt;" in text and "bob" in text and "<ann>" not in text
        assert "Least certain images" in text
        assert "&lt;script&gt;" in text and "<script>" not in text

    @pytest.mark.parametrize("role", [Role.VIEWER, Role.ANNOTATOR])
    def test_only_admins_export(self, handlers, store: Store, role: Role) -> None:
        crowd(store, 2, PEOPLE)
        message, versions, _file = exported(handlers("eve", role))
        assert "this takes an admin" in message and "choices" not in versions
        made = exported(handlers())[1]["value"]
        message, file = handlers("eve", role).download(REQUEST, made)
        assert "this takes an admin" in message and file is None

    def test_who_is_no_longer_a_user_sees_nothing(self, handlers, store: Store) -> None:
        crowd(store, 2, PEOPLE)
        tab = handlers(role=None)
        message, *others = tab.show(REQUEST)
        assert "no longer a user" in message
        assert others[:5] == [""] * 5 and not any(update.get("value") for update in others[5:])
        assert "no longer a user" in exported(tab)[0]

    def test_figures_follow_new_opinions(self, handlers, store: Store) -> None:
        tab = handlers()
        tab.show(REQUEST)
        say(store, add(store, 1), {Aspect.QUALITY: 3.0}, "kim")
        assert ">kim<" in texts(tab.show(REQUEST))


class TestFigures:
    def test_a_coefficient_says_what_it_rests_on_and_a_missing_one_why(self, store: Store) -> None:
        crowd(store, 6, {"ann": 0.5, "bob": 0.0})
        with store.database.reading() as session:
            found = overview(session)
        html = figures.agreement_html(found)
        assert "<b>1.00</b><small>6 images, 2 people</small>" in html
        assert "No two images have been scored by two people." in html  # of the other aspects
        assert "nan" not in html + figures.mean_opinions_html(found) + figures.annotators(
            found.annotators, "All"
        )

    def test_the_distribution_counts_every_image_once(self, store: Store) -> None:
        crowd(store, 6, {"ann": 0.5, "bob": 0.0})
        with store.database.reading() as session:
            current = overview(session)
        chart = figures.distribution(Aspect.QUALITY, current)
        assert sum(row[1] for row in chart.value["data"]) == 6
        assert chart.caption.startswith("6 images, mean ") and chart.visible
        assert not figures.distribution(Aspect.CORRESPONDENCE, current).visible

    def test_the_csv_has_every_mean_with_its_interval_where_one_is_known(self, store: Store) -> None:
        items = crowd(store, 6, {"ann": 0.5, "bob": 0.0})
        alone = add(store, 50)
        say(store, alone, {Aspect.AUTHENTICITY: 2.0}, "solo")
        with store.database.reading() as session:
            found = overview(session)
        rows = list(csv.DictReader(io.StringIO(means_csv(found))))
        assert [int(row["item"]) for row in rows] == [*items, alone]
        assert (rows[-1]["mos"], rows[-1]["low"], rows[-1]["raters"]) == ("2.0000", "", "1")
        first = found.aspects[Aspect.QUALITY].scaling.opinions[items[0]]
        assert float(rows[0]["mos"]) == pytest.approx(first.mos, abs=1e-4)
        assert not math.isnan(first.low) and float(rows[0]["low"]) == pytest.approx(first.low, abs=1e-4)


class TestExport:
    def test_a_version_is_kept_offered_and_written_into_the_trail(self, handlers, store: Store) -> None:
        crowd(store, 3, PEOPLE)
        message, versions, button = exported(handlers())
        name = versions["value"]
        assert f"Exported {name}: 3 images" in message
        assert [value for _title, value in versions["choices"]] == [name]
        assert button["visible"]
        message, file = handlers().download(REQUEST, name)
        assert message == messages.message("") and Path(file).name == f"{name}.zip"
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        assert f"{name}/manifest.json" in names and f"{name}/samples.jsonl" in names
        assert sum(each.startswith(f"{name}/images/") for each in names) == 3
        with store.database.reading() as session:
            entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "export")).one()
        assert entry.details == {"version": name}
        assert handlers().show(REQUEST)[11]["value"] == name, "it is there for the next visit, too"

    def test_an_admin_pushes_a_version_to_the_hub(self, handlers, hub: Hub, store: Store) -> None:
        crowd(store, 3, PEOPLE)
        exported(handlers())
        [made] = handlers().versions.all()
        for role in (Role.ANNOTATOR, Role.VIEWER):
            assert "admin" in handlers(role=role).push(REQUEST, made.name, "team/data", True)
        assert "no longer there" in handlers().push(REQUEST, "other", "team/data", True)
        for name in ("", "data", "../x/y"):
            assert "organisation/name" in handlers().push(REQUEST, made.name, name, True)
        assert hub.messages == []
        told = handlers().push(REQUEST, made.name, " team/data ", False)
        assert f"Pushed {made.name} to {hub.url}" in told and hub.messages == [made.name]
        with store.database.reading() as session:
            entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "push")).one()
        assert entry.details == {"version": made.name, "repository": "team/data"}

    def test_visits_do_not_copy_exports(self, handlers, store: Store, tmp_path: Path) -> None:
        crowd(store, 1, PEOPLE)
        exported(handlers())
        handlers().show(REQUEST)
        assert [path.parent.name for path in tmp_path.rglob("*.zip")] == ["exports"]

    def test_the_same_annotations_are_the_same_version(self, handlers, store: Store) -> None:
        crowd(store, 2, PEOPLE)
        exported(handlers())
        again = exported(handlers())[1]
        assert len(again["choices"]) == 1
        say(store, add(store, 9), {Aspect.QUALITY: 3.0}, "kim")
        assert len(exported(handlers())[1]["choices"]) == 2

    def test_the_newest_versions_stay_and_what_is_no_export(self, store: Store, tmp_path: Path) -> None:
        crowd(store, 1, PEOPLE)
        versions = ExportVersions(tmp_path / "exports")
        made = [versions.make(store, name=f"export{number}").version for number in range(MAX_VERSIONS)]
        (versions.folder / "notes.zip").write_bytes(b"mine")
        assert {version.name for version in versions.all()} == set(made)
        oldest = versions.all()[-1].name
        newest = versions.make(store, name="another").version
        assert {version.name for version in versions.all()} == {*made, newest} - {oldest}
        assert (versions.folder / "notes.zip").exists()

    @pytest.mark.parametrize(
        "changes, sentence",
        [
            ({"name": "../../etc"}, "cannot be an export"),
            ({"name": None}, "cannot be an export"),
            ({"aspects": []}, "No aspect was chosen"),
            ({"aspects": ["beauty"]}, "no aspect"),
            ({"aspects": 3}, "No aspect"),
            ({"min_raters": None}, "whole number"),
            ({"min_raters": 1.5}, "whole number"),
            ({"min_raters": 4}, "ask for fewer annotators"),
            ({"sources": ["dogs"]}, "None of the images"),
            ({"method": "median"}, "median"),
            ({"method": ["p910"]}, "MOS method"),
        ],
    )
    def test_what_cannot_be_exported_is_told(
        self, handlers, store: Store, changes: dict[str, Any], sentence: str
    ) -> None:
        crowd(store, 2, PEOPLE)
        tab = handlers()
        message, versions, _file = exported(tab, **changes)
        assert sentence in message and 'role="alert"' in message
        assert "choices" not in versions
        assert tab.versions.all() == []

    def test_nothing_to_export_is_told(self, handlers) -> None:
        assert "no annotations yet" in exported(handlers())[0]
        assert not handlers().show(REQUEST)[8]["visible"]

    def test_picks_alone_can_be_exported(self, handlers, store: Store) -> None:
        scores = {add(store, number): 3.0 for number in range(2)}
        pick(store, min(scores), scores)
        assert handlers().show(REQUEST)[8]["visible"], "the form"
        message, versions, _button = exported(handlers())
        assert "0 images" in message and "Picks of the best image: 1." in message
        assert [title for title, _value in versions["choices"]] == [
            f"{versions['value']}: 0 images, 0 corrections, 1 pick"
        ]

    @pytest.mark.parametrize("name", ["../annotations", "", None, ["mine"]])
    def test_only_versions_can_be_downloaded(self, handlers, store: Store, name: object) -> None:
        crowd(store, 1, PEOPLE)
        exported(handlers())
        message, file = handlers().download(REQUEST, name)
        assert "no longer there" in message and file is None

    def test_a_folder_that_cannot_be_written_is_told(self, store: Store, tmp_path: Path) -> None:
        crowd(store, 1, PEOPLE)
        (tmp_path / "exports").write_text("a file where the folder should be")
        with pytest.raises(InputError, match="cannot be written"):
            ExportVersions(tmp_path / "exports").make(store, name="mine")

    def test_files_that_are_no_exports_are_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "notes.zip").write_bytes(b"no archive")
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("other/manifest.json", "[]")
            archive.writestr("more/manifest.json", '{"created": "now", "counts": {}}')
        (tmp_path / "more.zip").write_bytes((tmp_path / "other.zip").read_bytes())
        assert ExportVersions(tmp_path).all() == []
