"""A grid of settings becomes tables: every row measured as often as wanted, nothing trained twice."""

import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from chat_stand import chat_stand
from scripted_backbone import QUICK, ScriptedBackbone, begun_run

from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from training import pipeline
from training.evaluation import ablations as ablate_module
from training.evaluation.ablations import RESULTS_FILE, ablate
from training.run import RunFolder
from training.stages.describe_remote import ServerConfig

pytestmark = pytest.mark.usefixtures("scripted")

TABLES = [
    {
        "title": "Pooling",
        "rows": {
            "mean": {},
            "last": {"fit": {"pooling": "last"}},
            "GRU": {"fit": {"extractor": "gru", "blocks": 1}},
        },
    },
    {
        "title": "Descriptions present",
        "rows": {
            "none": {"reading": {"descriptions": []}},
            "own": {},
            "all three": {"reading": {"descriptions": ["quality", "correspondence", "authenticity"]}},
            "full conversation": {"reading": {"rated": True}},
        },
    },
]
NO_DESCRIPTION = {"reading": {"descriptions": []}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Described, on scores of quality alone."""
    run = begun_run(tmp_path)
    pipeline.describe(run)
    ScriptedBackbone.asked.clear()
    return run


@pytest.fixture(autouse=True)
def opened_anew() -> None:
    for cached in (ablate_module._loaded, ablate_module._head):
        cached.cache_clear()


def grid(run: RunFolder, **changes: Any) -> dict[str, Any]:
    return {"run": str(run.folder), "tables": TABLES, "seeds": [0, 1], **changes}


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / RESULTS_FILE).read_text().splitlines()]


def numbers(out: Path) -> dict[str, tuple]:
    columns = ("seed", "srcc", "plcc", "validation_srcc", "n", "weights")
    return {row["key"]: tuple(row[column] for column in columns) for row in results(out)}


def test_tables_have_every_row_with_mean_and_spread(run: RunFolder, tmp_path: Path) -> None:
    text = ablate(grid(run), Path("grid.yaml"), tmp_path / "out")
    assert (tmp_path / "out" / "ablations.md").read_text() == text
    first, second = (part.splitlines() for part in re.split(r"^## ", text, flags=re.M)[1:])
    assert (first[0], second[0]) == ("Pooling", "Descriptions present")
    cells = {
        line.split(" | ")[0].strip("| "): line.split(" | ") for line in (*first, *second) if " ± " in line
    }
    assert list(cells) == ["mean", "last", "GRU", "none", "own", "all three", "full conversation"]
    assert cells["mean"][1:5] == cells["own"][1:5], "the same settings are trained once"
    assert len(results(tmp_path / "out")) == 2 * 6, "of seven rows, two are the same"
    own = [
        row
        for row in results(tmp_path / "out")
        if row["variant"]["reading"] == {"descriptions": None, "rated": False}
    ]
    pooled = [row for row in own if row["variant"]["fit"]["pooling"] == "last"]
    for column, cell in (("srcc", 1), ("plcc", 2), ("validation_srcc", 3)):
        values = [row[column] for row in pooled]
        assert len(values) == 2
        assert cells["last"][cell] == f"{mean(values):.3f} ± {stdev(values):.3f}"
    assert {row["n"] for row in own} == {10}
    assert {row["seed"] for row in own} == {0, 1}

    def reached(name: str) -> float:
        return float(cells[name][1].split(" ± ")[0])

    assert min(reached("own"), reached("all three"), reached("full conversation")) > 0.8
    assert abs(reached("none")) < 0.7, "without a description there is nothing to be read"


def test_only_what_is_missing_is_generated_and_read(run: RunFolder, tmp_path: Path) -> None:
    ablate(grid(run), Path("grid.yaml"), tmp_path / "out")
    asked = [told for requests in ScriptedBackbone.asked for each in requests for told in each.conversations]
    opened = [told for told in asked if len(told.turns) == 1 and told.turns[0].content.startswith("Please")]
    assert {told.aspect for told in opened} >= {Aspect.CORRESPONDENCE, Aspect.AUTHENTICITY}
    ScriptedBackbone.asked.clear()
    ablate(grid(run), Path("grid.yaml"), tmp_path / "again")
    assert ScriptedBackbone.asked == []
    assert numbers(tmp_path / "again") == numbers(tmp_path / "out")


def test_what_is_done_is_not_trained_again(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained, pooling = tmp_path / "out", [], TABLES[:1]
    text = ablate(grid(run, tables=pooling), Path("grid.yaml"), out)
    before = numbers(out)
    lines = (out / RESULTS_FILE).read_text().splitlines(keepends=True)
    (out / RESULTS_FILE).write_text("".join(lines[:4] + lines[5:]))
    fitted = ablate_module.fit
    monkeypatch.setattr(ablate_module, "fit", lambda *all_: trained.append(all_[4]) or fitted(*all_))
    again = ablate(grid(run, tables=pooling), Path("grid.yaml"), out)
    assert trained == [json.loads(lines[4])["key"]]
    assert numbers(out) == before
    assert [line.rsplit("|", 2)[0] for line in again.splitlines()] == [
        line.rsplit("|", 2)[0] for line in text.splitlines()
    ]
    ablate(grid(run, tables=pooling, seeds=[0, 1, 2]), Path("grid.yaml"), out)
    assert len(trained) == 1 + 3, "a further seed of each row"


def test_an_interrupted_grid_goes_on(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooling = grid(run, tables=TABLES[:1])
    ablate(pooling, Path("grid.yaml"), tmp_path / "whole")
    fitted, trained = ablate_module.fit, []

    def interrupted(*all_: Any):
        trained.append(all_[4])
        if len(trained) == 4:
            raise KeyboardInterrupt
        return fitted(*all_)

    monkeypatch.setattr(ablate_module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablate(pooling, Path("grid.yaml"), tmp_path / "cut")
    assert len(results(tmp_path / "cut")) == 3
    ablate(pooling, Path("grid.yaml"), tmp_path / "cut")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_other_data_or_another_run_has_results_of_its_own(run: RunFolder, tmp_path: Path) -> None:
    few = [{"title": "T", "rows": {"own": {}}}]
    ablate(grid(run, tables=few), Path("grid.yaml"), tmp_path / "out")
    other = begun_run(tmp_path / "other", count=36)
    pipeline.describe(other)
    ablate(grid(other, tables=few), Path("grid.yaml"), tmp_path / "out")
    assert [row["n"] for row in results(tmp_path / "out")] == [10, 10, 9, 9]


def test_several_processes_give_the_same_numbers(run: RunFolder, tmp_path: Path) -> None:
    few = [{"title": "T", "rows": {"own": {}, "last": {"fit": {"pooling": "last"}}}}]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ablate(grid(run, tables=few), Path("grid.yaml"), tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    ablate(grid(run, tables=few), Path("grid.yaml"), tmp_path / "two", processes=2)
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert two[key] == pytest.approx(row, abs=1e-6)


def test_the_vocabulary_and_an_untuned_backbone_are_rows_like_others(run: RunFolder, tmp_path: Path) -> None:
    rows = {"hidden": {}, "vocab": {"fit": {"projection": "vocab"}}, "w/o ft": {"finetuned": False}}
    ablate(grid(run, tables=[{"title": "T", "rows": rows}], seeds=[0]), Path("grid.yaml"), tmp_path / "out")
    found = results(tmp_path / "out")
    assert [row["variant"]["finetuned"] for row in found] == [True, True, False]
    assert min(row["srcc"] for row in found) > 0.8
    assert found[1]["weights"] - found[0]["weights"] == QUICK.dim * (30 - 6)
    assert found[2]["srcc"] == found[0]["srcc"], "nothing was tuned in this run"


def test_the_best_epoch_is_chosen_where_the_run_says(tmp_path: Path) -> None:
    """The paper's data sets have no validation part."""
    run = begun_run(tmp_path, select_on="test")
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        sample["split"] = "train" if sample["split"] == "validation" else sample["split"]
        sample["image"] = str(tmp_path / "data" / Path(sample["image"]).name)
    (run.folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    few = grid(run, tables=[{"title": "T", "rows": {"own": {}}}], seeds=[0])
    ablate(few, Path("grid.yaml"), tmp_path / "out")
    (row,) = results(tmp_path / "out")
    assert row["validation_srcc"] == pytest.approx(row["srcc"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tables": [{"title": "T", "rows": {"a": {"fit": {"poling": "last"}}}}]}, "did you mean pooling"),
        (
            {"tables": [{"title": "T", "rows": {"a": {"reading": {"descriptions": ["beauty"]}}}}]},
            "descriptions",
        ),
        ({"tables": [{"title": "T", "rows": {"a": None}}]}, "rows"),
        ({"seeds": []}, "seeds: give at least one"),
        ({"table": []}, "no setting table; did you mean tables"),
        ({"aspect": "beauty"}, "aspect"),
    ],
)
def test_mistakes_in_a_grid_are_named(run: RunFolder, tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=f"grid.yaml: .*{sentence}"):
        ablate(grid(run, **changes), Path("grid.yaml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_run_or_split_is_named(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run in"):
        ablate({**grid(run), "run": str(tmp_path / "none")}, Path("grid.yaml"), tmp_path / "out")
    with pytest.raises(InputError, match="no images with scores in its train split"):
        ablate(grid(run, aspect="authenticity"), Path("grid.yaml"), tmp_path / "out")


def test_a_grid_over_a_run_whose_server_has_generated(tmp_path: Path) -> None:
    with chat_stand() as stand:
        run = begun_run(tmp_path, server=ServerConfig(stand.url))
        pipeline.describe(run)
        settings = grid(run, seeds=[0], tables=[{**TABLES[1], "rows": {"own": {}, "none": NO_DESCRIPTION}}])
        ablate(settings, Path("grid.yaml"), tmp_path / "out")
        assert len(stand.asked) == 2 * 40
    assert len(results(tmp_path / "out")) == 2
    entries = RunFolder.open(run.folder).cache.entries.values()
    assert sum(entry.description.startswith("It is 0.") for entry in entries) == 40
    assert sum(entry.description == "" for entry in entries) == 40, "read without any"
