"""Cases from the reports of training runs."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded_cases import write_run

from annotation.failures.catalogue import Catalogue
from annotation.failures.filters import View
from annotation.failures.from_training_runs import RunReports
from annotation.store import Store
from m3agiqa.errors import InputError
from training.evaluation.evaluate import PREDICTION_COLUMNS

ROW = dict.fromkeys(PREDICTION_COLUMNS) | {
    "sample": "0007",
    "image": "images/0007.png",
    "prompt": "NA",
    "aspect": "quality",
    "mos": 2.5,
    "predicted": 4.0,
    "rating": "good",
    "spoken_rating": "fair",
    "description": "sharp",
    "reference": "blurred",
}


def test_a_report_of_the_training_becomes_cases(tmp_path: Path) -> None:
    write_run(tmp_path, "one", [ROW])
    [data] = RunReports(tmp_path).data_sets()
    [case] = RunReports(tmp_path).judged(data.versions[0].key).cases.to_dict("records")
    assert (case["item"], case["prompt"]) == ("0007", "NA"), "texts stay what they are"
    words = case["rating"], case["spoken_rating"], case["words_apart"]
    assert (case["error"], words) == (1.5, ("good", "fair", 1))
    assert (case["description"], case["reference"], case["generator"]) == ("sharp", "blurred", None)
    assert case["raters"] != case["raters"], "nothing tells how many people are behind it"


def test_the_rating_of_an_older_report_is_the_spoken_one(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "spoken_rating"}
    write_run(tmp_path, "old", [row | {"rating": "poor"}])
    [data] = RunReports(tmp_path).data_sets()
    [case] = RunReports(tmp_path).judged(data.versions[0].key).cases.to_dict("records")
    assert (case["rating"], case["spoken_rating"], case["words_apart"]) == ("good", "poor", 2)


def test_runs_on_the_same_data_belong_together(tmp_path: Path) -> None:
    for name, fingerprint in (("one", "a" * 64), ("two", "a" * 64), ("three", "b" * 64)):
        write_run(tmp_path, name, [ROW], fingerprint)
    (tmp_path / "one/report/groups.csv").write_text("grouping,aspect\ngenerator,quality\n")
    found = {data.key: [v.title for v in data.versions] for data in RunReports(tmp_path).data_sets()}
    assert found == {
        "run:" + "a" * 12: ["one 1.0 (run one)", "two 1.0 (run two)"],
        "run:" + "b" * 12: ["three 1.0 (run three)"],
    }


def test_a_report_alone_is_enough(tmp_path: Path) -> None:
    table = write_run(tmp_path, "bare", [ROW])
    table.with_name("metrics.json").write_text("{ not json")
    [data] = RunReports(tmp_path).data_sets()
    assert (data.title, data.versions[0].title) == ("Run bare", "untitled (run bare)")
    assert RunReports(tmp_path).judged(data.versions[0].key).cases["scale_high"].tolist() == [5.0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "not a CSV table"),
        ("sample,image\n1,2\n", "lacks the columns aspect, mos, predicted"),
        ('sample,image,aspect,mos,predicted\n"a,b', "not a CSV table"),
        ("sample,image,aspect,mos,predicted\na,b,quality,3,3\na,c,beauty,3,3\n", "row 2 .* aspect"),
        ("sample,image,aspect,mos,predicted\na,b,quality,three,3\n", "row 1 .* mos is no number"),
        ("sample,image,aspect,mos,predicted\na,b,quality,3,inf\n", "row 1 .* predicted is no number"),
        ("sample,image,aspect,mos,predicted\na,,quality,3,3\n", "row 1 .* image is empty"),
        ("sample,image,aspect,mos,predicted\na,b,quality,3,3\na,b,quality,3,3\n", "row 2 .* been there"),
        (b"\xff\xfe\x00", "not a CSV table"),
    ],
)
def test_a_broken_report_is_offered_and_says_what_is_wrong(
    tmp_path: Path, content: str | bytes, told: str
) -> None:
    table = write_run(tmp_path, "broken", [ROW])
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    reports = RunReports(tmp_path)
    [data] = reports.data_sets()
    with pytest.raises(InputError, match=f"broken/report/predictions.csv .*{told}") as error:
        reports.judged(data.versions[0].key)
    assert str(tmp_path) not in str(error.value)


def test_a_report_that_vanishes_meanwhile_is_no_report(tmp_path: Path) -> None:
    """A dangling link is what a listed file looks like that is deleted before it is looked at."""
    table = write_run(tmp_path / "runs", "one", [ROW])
    gone = write_run(tmp_path / "runs", "two", [ROW])
    gone.unlink()
    gone.symlink_to(tmp_path / "nowhere.csv")
    reports = RunReports(tmp_path / "runs")
    [data] = reports.data_sets()
    [version] = data.versions
    table.with_name("metrics.json").unlink()
    assert reports.stamp(version.key)
    table.unlink()
    for call in (reports.stamp, reports.judged):
        with pytest.raises(InputError, match=r"no report one/report/predictions\.csv any more"):
            call(version.key)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_cases_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    report = folder / "run/report"
    report.mkdir(parents=True, exist_ok=True)
    (report / "predictions.csv").write_bytes(content)
    [data] = RunReports(folder).data_sets()
    with pytest.raises(InputError):
        RunReports(folder).judged(data.versions[0].key)


@pytest.mark.parametrize("key", ["run:../secret.csv", "run:", "run:/etc/passwd", "run:gone/report/x.csv"])
def test_only_listed_reports_are_read(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret.csv").write_text("sample,image,aspect,mos,predicted\na,b,quality,3,3\n")
    write_run(tmp_path / "runs", "one", [ROW])
    with pytest.raises(InputError, match="no report"):
        RunReports(tmp_path / "runs").judged(key)


def test_a_folder_of_runs_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert RunReports(tmp_path / "runs").data_sets() == []


# --- together with the database ----------------------------------------------------------------


def test_a_report_that_is_written_anew_is_read_anew(store: Store, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one", [ROW])
    catalogue = Catalogue(store, tmp_path / "runs")
    key = "run:one/report/predictions.csv"
    kept = catalogue.table(key)
    assert catalogue.table(key) is kept, "not read twice"
    (tmp_path / "runs/one/report/predictions.csv").unlink()
    write_run(tmp_path / "more", "one", [ROW, {**ROW, "aspect": "authenticity"}])
    (tmp_path / "more/one/report/predictions.csv").rename(tmp_path / "runs/one/report/predictions.csv")
    assert len(catalogue.table(key)) == 2


def test_what_a_view_wants_and_is_not_there_is_replaced(store: Store, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one", [ROW])
    catalogue = Catalogue(store, tmp_path / "runs")
    view, choices = catalogue.settle(
        View(data="x", model="y", other="z", generator="w", tag="v", case="7|quality")
    )
    assert view.model == "run:one/report/predictions.csv"
    assert (view.other, view.generator, view.tag, view.case) == ("", "", "", "7|quality")
    assert [data.title for data in choices.data_sets] == ["Annotation database", "Runs on drawings (ffffff)"]


def test_runs_on_other_data_may_be_compared_if_they_share_images(store: Store, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one", [ROW], "a" * 64)
    write_run(tmp_path / "runs", "two", [{**ROW, "predicted": 3.0}], "b" * 64)
    write_run(tmp_path / "runs", "far", [{**ROW, "image": "elsewhere.png"}], "c" * 64)
    catalogue = Catalogue(store, tmp_path / "runs")
    _, choices = catalogue.settle(View(model="run:one/report/predictions.csv", data="run:" + "a" * 12))
    assert {version.title for version in choices.others} == {"two 1.0 (run two)", "far 1.0 (run far)"}
    one, two, far = (f"run:{name}/report/predictions.csv" for name in ("one", "two", "far"))
    assert catalogue.table(one, two)["gain"].tolist() == [1.0]
    with pytest.raises(InputError, match="in common"):
        catalogue.table(one, far)


def test_a_broken_report_does_not_keep_the_others_from_being_chosen(store: Store, tmp_path: Path) -> None:
    table = write_run(tmp_path / "runs", "one", [ROW])
    table.write_text("nonsense")
    view, choices = Catalogue(store, tmp_path / "runs").settle(View())
    assert view.model and choices.generators == []
