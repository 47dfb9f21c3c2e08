"""The command line says what it will do, does only that, and ends mistakes with one sentence."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from scripted_backbone import QUICK, ScriptedBackbone, drawings

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.metrics import srcc
from training.__main__ import main
from training.config import RunConfig, plain
from training.pipeline import STAGE_NAMES, STAGES
from training.run import RunFolder
from training.stages.fit import predict

pytestmark = pytest.mark.usefixtures("scripted")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings for 24 drawings, whose run would be in the folder `run`."""
    drawings(tmp_path / "data", 24, MosScale(1, 5), (Aspect.QUALITY, Aspect.CORRESPONDENCE))
    data = {"format": "samples", "path": str(tmp_path / "data" / "samples.jsonl"), "scale": [1, 5]}
    data["split"] = {"by": "image", "ratios": [2, 1, 1]}
    path = tmp_path / "drawn.yaml"
    path.write_text(yaml.safe_dump({"data": data, "start": None, "fit": plain(QUICK), "seeds": [0, 1]}))
    return path


def stage(name: str, config: Path, *more: str) -> int:
    return main([name, str(config), "--run", str(config.parent / "run"), *more])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def steps(told: str) -> dict[str, str]:
    """State by stage."""
    found = {}
    for line in told.splitlines():
        name, state = line[:9].strip(), line[10:19].strip()
        if name in STAGE_NAMES:
            found[name] = state
    return found


def test_stages_come_after_what_they_need() -> None:
    for place, each in enumerate(STAGES):
        assert set(each.needs) <= set(STAGE_NAMES[:place])


def test_the_plan_names_every_stage_and_does_nothing(config: Path, capsys: pytest.CaptureFixture) -> None:
    before = files(config.parent)
    assert stage("run", config, "--plan") == 0
    told = capsys.readouterr().out
    assert list(steps(told)) == list(STAGE_NAMES)
    assert files(config.parent) == before
    assert ScriptedBackbone.asked == []
    assert {name for name, state in steps(told).items() if state == "left out"} == {
        "distill",
        "align",
        "finetune",
        "words",
        "encode",
        "transfer",
    }
    assert "seeds 0, 1" in told
    assert str(config.parent / "data" / "samples.jsonl") in told


def test_every_setting_is_explained(capsys: pytest.CaptureFixture) -> None:
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    assert "data.split.holdout: 0.1\n    Share of the training images set aside" in text
    assert {field.name for field in fields(RunConfig)} <= set(re.findall(r"^(\w+)[.:]", text, flags=re.M))
    assert main(["settings", "fit"]) == 0
    assert set(re.findall(r"^(\w+)[.:]", capsys.readouterr().out, flags=re.M)) == {"fit"}
    assert main(["settings", "fi"]) == 2
    assert capsys.readouterr().err.startswith("There is no setting fi;")


def test_the_plan_of_settings_says_what_they_ask_for(config: Path, capsys: pytest.CaptureFixture) -> None:
    changes = ["teacher={names: [gemini, openai]}", "align={}", "finetune={tune: [vision]}", "encode=true"]
    options = [option for change in changes for option in ("--set", change)]
    assert stage("run", config, "--plan", *options) == 0
    told = capsys.readouterr().out
    assert "ask gemini, then openai" in told
    assert "tune vision of nano" in told
    assert {name for name, state in steps(told).items() if state == "left out"} == {"words", "transfer"}


def test_a_run_does_what_the_plan_says_once(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert stage("run", config, "--until", "datasets") == 0
    assert ScriptedBackbone.asked == []
    capsys.readouterr()
    before = files(config.parent)
    assert stage("run", config, "--plan") == 0
    told = capsys.readouterr().out
    assert files(config.parent) == before
    assert (steps(told)["datasets"], steps(told)["describe"]) == ("done", "to do")
    assert "24 samples in 43 conversations, 43 of them new" in told
    assert "4 to train" in told, "two aspects, two seeds"

    assert stage("run", config, "--until", "fit") == 0
    spoken = sum(len(each.conversations) for requests in ScriptedBackbone.asked for each in requests)
    assert spoken == 43
    capsys.readouterr()
    assert main(["run", "--run", str(config.parent / "run"), "--until", "fit"]) == 0
    assert steps(capsys.readouterr().out)["fit"] == "done"
    again = sum(len(each.conversations) for requests in ScriptedBackbone.asked for each in requests)
    assert again == spoken
    fitted = sorted(
        path.parent.relative_to(config.parent / "run") for path in config.parent.rglob("fit.json")
    )
    assert list(map(str, fitted)) == [
        f"fit/{aspect}/seed-{seed}" for aspect in ("correspondence", "quality") for seed in (0, 1)
    ]


def test_a_run_keeps_its_resolved_settings_and_a_log(config: Path) -> None:
    assert stage("run", config, "--until", "datasets", "--set", "fit.epochs=3") == 0
    run = config.parent / "run"
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["fit"]["epochs"] == 3
    assert kept["backbone"] == "nano", "what was not given is written down too"
    assert RunFolder.open(run).config.fit.epochs == 3
    assert "datasets: done in" in (run / "log.txt").read_text()
    assert json.loads((run / "dataset.json").read_text())["scale"] == [1, 5]


def test_stages_can_be_run_one_by_one_and_in_shares(config: Path) -> None:
    assert stage("datasets", config) == 0
    run = ["--run", str(config.parent / "run")]
    for index in range(2):
        assert main(["describe", *run, "--share", f"{index}/2"]) == 0
    assert main(["fit", *run, "--aspect", "quality"]) == 0
    assert len(list(config.parent.rglob("fit.json"))) == 2
    assert len(list((config.parent / "run" / "hidden").glob("*.jsonl"))) == 2


def test_a_wrong_path_can_be_mended(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert stage("run", config, "--set", "data.path=/nowhere", "--until", "datasets") == 2
    assert capsys.readouterr().err == "There is no data set /nowhere.\n"
    assert stage("run", config, "--until", "datasets") == 0


def test_edited_data_are_taken_up_and_nothing_stale_is_reported(
    config: Path, capsys: pytest.CaptureFixture
) -> None:
    run = config.parent / "run"
    assert stage("run", config, "--until", "fit") == 0
    before = {path: path.read_bytes() for path in run.rglob("predictor-quality.safetensors")}
    table = config.parent / "data" / "samples.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows:
        row["mos"]["quality"] = 6 - row["mos"]["quality"]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stage("datasets", config) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run)]) == 2
    assert "Run `fit` first" in capsys.readouterr().err
    assert stage("run", config, "--until", "fit") == 0
    assert main(["evaluate", "--run", str(run)]) == 0
    assert before and all(path.read_bytes() != kept for path, kept in before.items())


def test_settings_that_the_predictors_do_not_have_are_not_reported(
    config: Path, capsys: pytest.CaptureFixture
) -> None:
    assert stage("run", config, "--until", "fit") == 0
    assert stage("evaluate", config, "--set", "fit.epochs=7") == 2
    assert "Run `fit` first" in capsys.readouterr().err


def test_what_was_described_in_part_is_not_fitted(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert stage("datasets", config) == 0
    run = ["--run", str(config.parent / "run")]
    assert main(["describe", *run, "--share", "0/2"]) == 0
    assert main(["fit", *run]) == 2
    assert "Run `describe` first" in capsys.readouterr().err


def test_a_checkpoint_replaces_nothing_but_a_checkpoint(config: Path, capsys: pytest.CaptureFixture) -> None:
    mine = config.parent / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    assert stage("run", config, "--until", "fit") == 0
    assert stage("ship", config, "--out", str(mine)) == 2
    assert "is no checkpoint" in capsys.readouterr().err
    assert (mine / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "none.yaml"], "Cannot read none.yaml"),
        (["fit"], "Give a settings file, or --run"),
        (["fit", "--run", "nowhere"], "There is no run in nowhere"),
        (["cross", "nowhere", "elsewhere"], "There is no run in nowhere"),
        (["ablate", "none.yaml"], "Cannot read none.yaml"),
        (["describe", "--run", "nowhere", "--share", "2/2"], "--share needs INDEX/COUNT"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("run", "fit.epohs=3", "drawn.yaml: there is no setting fit.epohs; did you mean epochs?"),
        ("run", "fit.epochs=many", "drawn.yaml: fit.epochs: "),
        ("run", "fit.epochs", "--set needs NAME=VALUE, got 'fit.epochs'."),
        ("run", "fit={a: [", "--set fit={a: [: the value is not YAML."),
        ("run", "backbone=pico", "There is no backbone 'pico' in this version; there are nano,"),
        ("run", "data.format=tables", "There is no data format 'tables'; there are"),
        ("run", "data.scale=null", "Set the scale that the scores of"),
        ("run", "start=large", "There is no model 'large'."),
        ("describe", "backbone=pico", "There is no samples.jsonl"),
        ("fit", "seed=0", "Run the stage datasets first."),
        ("evaluate", "seed=0", "Run the stage datasets first."),
        ("ship", "seed=0", "Run the stage datasets first."),
        ("sanity", "seed=0", "Run the stage datasets first."),
    ],
)
def test_mistakes_end_with_one_sentence(
    config: Path, name: str, change: str, sentence: str, capsys: pytest.CaptureFixture
) -> None:
    assert stage(name, config, "--set", change) == 2
    told = capsys.readouterr().err.splitlines()
    if sentence == "There is no samples.jsonl":
        sentence = f"There is no {config.parent / 'run' / 'samples.jsonl'}."
    assert sentence in told[-1]
    assert not any("Traceback" in line for line in told)


@pytest.mark.parametrize(
    ("done", "name", "sentence"),
    [
        ("datasets", "fit", "Run `describe` first."),
        ("describe", "evaluate", "There is no predictor for quality"),
        ("describe", "ship", "There is no predictor for quality"),
    ],
)
def test_a_stage_says_which_must_come_before(
    config: Path, done: str, name: str, sentence: str, capsys: pytest.CaptureFixture
) -> None:
    assert stage("run", config, "--until", done) == 0
    assert stage(name, config) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["fit", "transfer"])
def test_an_aspect_without_scores_is_named(config: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    assert stage("run", config, "--until", "describe", "--set", "transfer={epochs: 1}") == 0
    assert main([name, "--run", str(config.parent / "run"), "--aspect", "authenticity"]) == 2
    assert "authenticity" in capsys.readouterr().err.splitlines()[-1]


def test_tuning_without_descriptions_is_refused(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert stage("run", config, "--set", "finetune={}") == 2
    assert "No training sample has a description to fine-tune with" in capsys.readouterr().err
    log = (config.parent / "run" / "log.txt").read_text()
    assert "finetune: stopped by InputError: No training sample" in log


def test_an_interruption_is_no_mistake(config: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedBackbone, "fails_at", 1)
    assert stage("run", config, "--until", "describe") == 130
    assert "the same command continues from here" in capsys.readouterr().err
    assert stage("run", config, "--until", "describe") == 0


@pytest.mark.parametrize("joint", [False, True])
def test_predictors_over_the_vocabulary_are_kept_fused(config: Path, joint: bool) -> None:
    changes = [f"fit.joint={str(joint).lower()}", "fit.projection=vocab", "fit.epochs=12"]
    options = [option for change in changes for option in ("--set", change)]
    assert stage("run", config, "--until", "fit", *options) == 0
    run = RunFolder.open(config.parent / "run")
    names = {path.parent.parent.name for path in run.folder.rglob("fit.json")}
    assert names == ({"joint"} if joint else {"quality", "correspondence"})
    for aspect in run.aspects:
        test = run.targets(aspect, "test")
        best = run.best(aspect)
        assert (best.config.projection, best.config.input_size) == ("hidden", ScriptedBackbone.hidden_size)
        assert srcc(predict(best, [target.states for target in test]), [target.mos for target in test]) > 0.5
