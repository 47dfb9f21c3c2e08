"""People's corrections go before the data, nothing held out is learned from, and bad exports are named."""

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from drawings import draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_backbone import QUICK, ScriptedBackbone, begun_run, drawings

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.loading import BACKBONE_CLASSES
from m3agiqa.checkpoint.card import predictor_file, read_card
from m3agiqa.checkpoint.comparison import Agreement, Compared, Comparison
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.checkpoint.registry import candidates
from m3agiqa.errors import InputError
from m3agiqa.samples import EXPORT_FORMAT, Sample, read_samples, write_samples
from training.__main__ import main
from training.config import plain
from training.data.human_feedback import merge, pairs_within, read_annotations
from training.data.variants import image_hash
from training.pipeline import run_stages
from training.run import RunFolder
from training.stages.fit import predict

Q, C, A = Aspect.QUALITY, Aspect.CORRESPONDENCE, Aspect.AUTHENTICITY
SCALE = MosScale(1, 5)
CORRECTIONS = Path(__file__).parents[2] / "training" / "configs" / "corrections.yaml"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten different drawings."""
    folder = tmp_path_factory.mktemp("drawn")
    paths = [folder / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        draw("circle", "red", 32, number).save(path)
    return paths


def write_export(
    folder: Path, samples: Sequence[Sample], scale: tuple[float, float] = (1, 5), **changes: object
) -> Path:
    """An export as the app writes it, with copies of the images; `changes` are of the manifest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    copied = []
    for sample in samples:
        copy = folder / "images" / f"{image_hash(sample.image)}{sample.image.suffix}"
        if copy != sample.image:
            shutil.copy(sample.image, copy)
        copied.append(replace(sample, image=copy))
    write_samples(copied, folder / "samples.jsonl")
    digest = hashlib.sha256((folder / "samples.jsonl").read_bytes()).hexdigest()
    facts = {"name": "annotations", "version": "2026-11-22", "scale": scale, "samples_sha256": digest}
    (folder / "manifest.json").write_text(json.dumps({**facts, **changes}))
    return folder


# --- merging -------------------------------------------------------------------------------------


def told(tmp_path: Path, *samples: Sample, scale: tuple[float, float] = (1, 5)):
    return read_annotations(write_export(tmp_path / "export", samples, scale))


def test_what_people_say_replaces_what_the_data_says_of_the_same_image_and_prompt(
    tmp_path: Path, images: list[Path]
) -> None:
    teacher = {Q: "by the teacher", A: "by the teacher"}
    data = [
        Sample("same", images[0], "a red  circle", {Q: 2.0, A: 2.0}, teacher, generator="pen"),
        Sample("other prompt", images[0], "a bar", {Q: 2.5, A: 2.0}, teacher),
        Sample("other image", images[1], "a red circle", {Q: 3.0, A: 2.0}, teacher),
    ]
    said = Sample("7", images[0], "a red circle", {Q: 4.5}, {Q: "by people"}, raters={Q: 3})
    found, annotated = merge(data, SCALE, told(tmp_path, said))
    assert found[0] == replace(
        data[0], mos={Q: 4.5, A: 2.0}, descriptions={Q: "by people", A: "by the teacher"}, raters={Q: 3}
    )
    assert found[1:] == data[1:], "another prompt or image is something else"
    assert annotated.scored == {"same": [Q]}


def test_scores_are_moved_to_the_scale_of_the_data(tmp_path: Path, images: list[Path]) -> None:
    data = [Sample("a", images[0], "x", {Q: 80.0})]
    found, _ = merge(data, MosScale(0, 100), told(tmp_path, Sample("1", images[0], "x", {Q: 2.0})))
    assert found[0].mos == {Q: 25.0}
    assert found[0].raters == {Q: 1}, "whoever scored, somebody did"


def test_new_images_are_added_with_an_id_of_their_own(tmp_path: Path, images: list[Path]) -> None:
    data = [Sample("1", images[0], "x", {Q: 2.0, C: 3.0})]
    new = Sample("1", images[1], None, {Q: 4.0, C: 4.0, A: 4.0}, {A: "told"}, raters={Q: 2, C: 2, A: 2})
    found, annotated = merge(data, SCALE, told(tmp_path, new))
    assert found[0] == data[0]
    assert (found[1].id, found[1].mos, found[1].raters) == ("annotations/1", {Q: 4.0, A: 4.0}, {Q: 2, A: 2})
    assert found[1].descriptions == {A: "told"}, "of an aspect that the data has no scores of"
    assert image_hash(found[1].image) == image_hash(images[1])
    assert annotated.scored == {"annotations/1": [Q, A]}


def test_an_export_of_nothing_and_the_same_image_twice_are_errors(tmp_path: Path, images: list[Path]) -> None:
    data = [Sample("a", images[0], "x", {Q: 2.0})]
    with pytest.raises(InputError, match="hold neither scores nor descriptions"):
        merge(data, SCALE, told(tmp_path, Sample("1", images[0], "x")))
    twice = [Sample("1", images[0], "x", {Q: 2.0}), Sample("2", images[0], " x", {Q: 3.0})]
    with pytest.raises(InputError, match="with the same prompt twice"):
        merge(data, SCALE, told(tmp_path, *twice))


drawn = st.tuples(st.integers(0, 5), st.sampled_from("abcd"), st.sampled_from(PARTS))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    data=st.lists(drawn, min_size=1, max_size=10),
    theirs=st.lists(drawn, min_size=1, max_size=8, unique_by=lambda each: each[:2]),
    by_prompt=st.booleans(),
)
def test_no_image_and_no_whole_prompt_is_in_two_parts(
    tmp_path: Path, images: list[Path], data: list[tuple], theirs: list[tuple], by_prompt: bool
) -> None:
    if by_prompt:  # as a split by prompt leaves it
        home = dict(zip("abcd", (*PARTS, "train"), strict=True))
        data = [("abcd".index(prompt), prompt, home[prompt]) for _, prompt, _ in data]
    own = [
        Sample(f"d{n}", images[i], p, {Q: 2.0}, split=part)
        for n, (i, p, part) in enumerate(dict.fromkeys(data))
    ]
    said = [Sample(f"t{n}", images[i], p, {Q: 4.0}, split=part) for n, (i, p, part) in enumerate(theirs)]
    shutil.rmtree(tmp_path / "export", ignore_errors=True)
    found, _ = merge(own, SCALE, told(tmp_path, *said))

    parts: dict[str, set[str]] = {}
    for sample in found:
        parts.setdefault(image_hash(sample.image), set()).add(sample.split)
        if by_prompt:
            parts.setdefault(sample.prompt, set()).add(sample.split)
    assert all(len(each) == 1 for each in parts.values())
    held_out = {image_hash(sample.image) for sample in [*own, *said] if sample.split == "test"}
    assert all(sample.split == "test" for sample in found if image_hash(sample.image) in held_out)
    assert {(image_hash(s.image), s.prompt) for s in found} == {
        (image_hash(s.image), s.prompt) for s in [*own, *said]
    }, "nothing is lost"


def test_a_held_out_generator_stays_so_and_a_held_out_image_takes_no_generator_along(
    tmp_path: Path, images: list[Path]
) -> None:
    data = [
        Sample(name, image, None, {Q: 2.0}, split=part, generator=generator)
        for name, image, part, generator in (
            ("a", images[0], "train", "old"),
            ("b", images[1], "train", "old"),
            ("c", images[2], "test", "new"),
        )
    ]
    said = [
        Sample("1", images[3], None, {Q: 3.0}, generator="new"),
        Sample("2", images[4], None, {Q: 3.0}, split="test", generator="old"),
        Sample("3", images[0], None, {Q: 3.0}, split="test", generator="old"),
    ]
    found, _ = merge(data, SCALE, told(tmp_path, *said))
    assert {sample.id: sample.split for sample in found} == {
        "a": "test",
        "b": "train",
        "c": "test",
        "annotations/1": "test",
        "annotations/2": "test",
    }


# --- exports that are none -----------------------------------------------------------------------


def test_exports_that_are_none_or_damaged_are_named(tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(InputError, match=r"no export of annotations in .*gone: no such folder"):
        read_annotations(tmp_path / "gone")
    with pytest.raises(InputError, match=r"needs manifest\.json and samples\.jsonl.*annotation export"):
        read_annotations(tmp_path)

    sample = Sample("1", images[0], "x", {Q: 2.0}, raters={Q: 2})
    folder = write_export(tmp_path / "export", [sample])
    assert [each.mos for each in read_annotations(folder).samples] == [{Q: 2.0}]
    with (folder / "samples.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="damaged or has been changed: its SHA-256"):
        read_annotations(folder)
    for path in (folder / "images").iterdir():
        path.unlink()
    write_samples([replace(sample, image=folder / "images" / "lost.png")], folder / "samples.jsonl")
    digest = hashlib.sha256((folder / "samples.jsonl").read_bytes()).hexdigest()
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**facts, "samples_sha256": digest}))
    with pytest.raises(InputError, match=r"1 of 1 images are missing; the first is lost\.png"):
        read_annotations(folder)


@pytest.mark.parametrize(
    "manifest", ["{", "[]", "{}", '{"name": 1, "version": 2, "samples_sha256": "", "scale": [5, 1]}']
)
def test_manifests_that_cannot_be_read_are_named(tmp_path: Path, images: list[Path], manifest: str) -> None:
    folder = write_export(tmp_path / "export", [Sample("1", images[0], None, {Q: 2.0})])
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=r"manifest\.json is damaged or of another version"):
        read_annotations(folder)


def test_an_export_of_a_newer_version_is_told(tmp_path: Path, images: list[Path]) -> None:
    folder = write_export(tmp_path / "export", [Sample("1", images[0], None, {Q: 2.0})])
    (folder / "manifest.json").write_text(json.dumps({"format": EXPORT_FORMAT + 1, "scales": "otherwise"}))
    with pytest.raises(InputError, match="exported by a newer version of M3-AGIQA Studio"):
        read_annotations(folder)


def test_scores_off_the_scale_and_mos_of_nobody_are_errors(tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(InputError, match="is 7, outside the scale from 1 to 5"):
        told(tmp_path, Sample("1", images[0], None, {Q: 7.0}))
    with pytest.raises(InputError, match="sample 1 has a MOS of"):
        told(tmp_path, Sample("1", images[0], None, {Q: 4.0}, raters={Q: 0}))


def write_picks(folder: Path, pairs: Sequence[tuple[Sample, Sample]]) -> None:
    """preferences.csv of an export, and the images in it; the first of each pair is the preferred one."""
    lines = ["preference_id,annotator,prompt,split,preferred,other"]
    for number, (better, other) in enumerate(pairs):
        names = [f"images/{image_hash(each.image)}.png" for each in (better, other)]
        for name, each in zip(names, (better, other), strict=True):
            shutil.copy(each.image, folder / name)
        lines.append(f"{number},ann,{better.prompt or ''},{better.split},{','.join(names)}")
    (folder / "preferences.csv").write_text("\n".join(lines))


def test_picks_are_pairs_of_samples_some_of_which_nobody_scored(tmp_path: Path, images: list[Path]) -> None:
    data = [Sample("d", images[0], "x", {Q: 2.0})]
    folder = write_export(tmp_path / "export", [Sample("s", images[1], "x", {Q: 3.0}, split="test")])
    bare = Sample("n", images[2], "x")
    write_picks(folder, [(data[0], bare), (Sample("n", images[1], "x"), bare)])
    found, annotated = merge(data, SCALE, read_annotations(folder))
    known, new, scored = sorted(found, key=lambda each: each.mos.get(Q, 2.5))
    assert (known.id, new.mos, scored.id) == ("d", {}, "annotations/s")
    assert annotated.preferred == [("d", new.id), ("annotations/s", new.id)]
    assert {each.split for each in found} == {"test"}, "an export's prompt stays in one part"
    assert pairs_within(found, annotated, ("test",)) == annotated.preferred
    assert not pairs_within(found, annotated, ("train",))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("preferred,prompt\na.png,x", "has no column other"),
        ("preferred,other,prompt\nimages/gone.png,images/gone.png,x", "there is no image images/gone.png"),
    ],
)
def test_tables_of_picks_that_cannot_be_read_are_named(
    tmp_path: Path, images: list[Path], table: str, message: str
) -> None:
    folder = write_export(tmp_path / "export", [Sample("s", images[1], "x", {Q: 3.0})])
    (folder / "preferences.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_annotations(folder)


# --- a run with them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings for 48 drawings, whose brightness is their quality."""
    folder = tmp_path_factory.mktemp("drawn")
    drawings(folder / "data", 48, SCALE, (Q,))
    data = {"format": "samples", "path": str(folder / "data" / "samples.jsonl"), "scale": [1, 5]}
    data["split"] = {"by": "image", "ratios": [2, 1, 1]}
    path = folder / "drawn.yaml"
    options = {"fit": plain(QUICK), "seeds": [0, 1, 2], "ship_seeds": True, "name": "drawn"}
    path.write_text(yaml.safe_dump({"data": data, "start": None, **options}))
    return path


@pytest.fixture(scope="module")
def before(config: Path) -> Path:
    """The checkpoint of a run without annotations."""
    run = config.parent / "before"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONE_CLASSES, "nano", ScriptedBackbone)
        assert main(["run", str(config), "--run", str(run)]) == 0
    return run / "checkpoint"


def people(config: Path, folder: Path) -> Path:
    """An export in which people find the dark drawings of the data good, and some of the light ones bad."""
    samples = read_samples(config.parent / "data" / "samples.jsonl")
    said = [
        replace(sample, mos={Q: 6 - sample.mos[Q]}, raters={Q: 3}, split="test" if n % 4 == 0 else "train")
        for n, sample in enumerate(samples)
        if n % 3
    ]
    return write_export(folder, said)


@pytest.mark.usefixtures("scripted")
def test_a_run_with_annotations_compares_and_registers(
    config: Path, before: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, models = tmp_path / "run", tmp_path / "models"
    export = ["--add-annotations", str(people(config, tmp_path / "export"))]
    command = ["run", str(config), "--run", str(run), "--register", str(models)]
    command += ["--set", f"before={before}"]
    assert main([*command, *export]) == 0
    printed = capsys.readouterr().out

    spoken = [len(request.conversations) for asked in ScriptedBackbone.asked for request in asked]
    assert sum(spoken) == 48, "what the same backbone has said serves both models"
    (candidate,) = candidates(models)
    assert candidate.card.title == "drawn 0.1.0+2026-11-22"
    assert candidate.card.learned_from.endswith("were scored anew by people (2026-11-22)")
    assert f"Registered as {candidate.name}" in printed
    rows = {row.part: row for row in candidate.comparison.rows}
    assert set(rows) == {"people", "data"}
    assert rows["people"].after.rmse < rows["people"].before.rmse
    assert f"{rows['people'].before.srcc:.3f} → {rows['people'].after.srcc:.3f}" in printed

    kept = json.loads((run / "report" / "comparison.json").read_text())
    assert kept == candidate.comparison.to_dict()
    with (run / "report" / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["part"] for row in table] == ["people", "data"]
    assert float(table[0]["bias_after"]) == pytest.approx(rows["people"].after.bias)
    page = (run / "report" / "report.html").read_text()
    assert "Before and after" in page and f"{rows['data'].after.rmse:.3f}" in page

    samples = {sample.id: sample for sample in RunFolder.open(run).samples}
    assert rows["people"].n == sum(s.split == "test" and Q in s.raters for s in samples.values())
    assert rows["data"].n == sum(s.split == "test" and not s.raters for s in samples.values())
    assert {predictor_file(Q, number) for number in range(3)} <= {p.name for p in candidate.folder.iterdir()}
    assert read_card(candidate.folder).seeds == 3

    written = (run / "report" / "report.html").stat().st_mtime_ns
    assert main([*command, *export]) == 0
    assert (run / "report" / "report.html").stat().st_mtime_ns == written, "nothing is measured twice"
    assert len(candidates(models)) == 1


@pytest.mark.usefixtures("scripted")
def test_a_changed_export_is_noticed_and_an_absent_one_named(
    config: Path, before: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, export = tmp_path / "run", people(config, tmp_path / "export")
    command = ["run", str(config), "--run", str(run), "--until", "evaluate"]
    changes = ["--set", f"before={before}", "--set", f"annotations={export}"]
    assert main([*command, *changes]) == 0
    first = json.loads((run / "report" / "comparison.json").read_text())
    samples = read_samples(export / "samples.jsonl")
    write_export(export, [replace(sample, mos={Q: 3.0}) for sample in samples])
    capsys.readouterr()
    assert main([*command, *changes]) == 0
    again = json.loads((run / "report" / "comparison.json").read_text())
    assert again["rows"][0]["before"]["rmse"] != first["rows"][0]["before"]["rmse"]
    shutil.rmtree(export)
    assert main([*command, *changes]) == 2
    assert "There is no export of annotations in" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("adapt", [False, True])
def test_a_run_learns_from_picks_and_orders_unseen_pairs_better(
    config: Path, before: Path, tmp_path: Path, capsys: pytest.CaptureFixture, adapt: bool
) -> None:
    """Unlike the model in service, people like dark drawings; eight scores are too few to tell it so."""
    drawn = read_samples(config.parent / "data" / "samples.jsonl")
    scored = [
        replace(sample, mos={Q: 6 - sample.mos[Q]}, split="test" if n % 4 == 0 else "train")
        for n, sample in enumerate(drawn[:8])
    ]
    export, pairs = write_export(tmp_path / "export", scored), []
    for number, pair in enumerate(zip(drawn[8::2], drawn[9::2], strict=True)):
        split = "test" if number % 5 == 4 else "train"
        about = [replace(sample, prompt=f"pair {number}", mos={}, split=split) for sample in pair]
        pairs.append(about if pair[0].mos[Q] < pair[1].mos[Q] else about[::-1])
    write_picks(export, pairs)
    command = ["run", str(CORRECTIONS), "--run", str(tmp_path / "run"), "--add-annotations", str(export)]
    command += ["--set", f"start={before}", "--set", "select_on=test"]
    command += ["--set", f"adapt={str(adapt).lower()}", "--set", f"fit={json.dumps(plain(QUICK))}"]
    assert main([*command, "--plan"]) == 0
    assert "16 pairs of picks (4 are held out)" in capsys.readouterr().out
    assert main([*command, "--register", str(tmp_path / "models")]) == 0
    run = RunFolder.open(tmp_path / "run")
    unseen = run.preferred(Q, "test")
    shares = []
    for model in (load_predictor(before, Q, read_card(before).predictors[Q]), run.best(Q)):
        worse = predict(model, [each.worse.states for each in unseen])
        better = predict(model, [each.states for each in unseen])
        shares.append(sum(one > two for one, two in zip(better, worse, strict=True)))
    assert len(unseen) == 4 and shares[0] <= 1 and shares[1] >= 3
    learned = read_card(run.checkpoint_folder).learned_from
    assert learned.startswith("5 images"), "not the ones that are only in pairs"
    assert "16 pairs of images in the order of people's picks" in learned


@pytest.fixture(scope="module")
def judges_two(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose checkpoint judges quality and authenticity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONE_CLASSES, "nano", ScriptedBackbone)
        run = begun_run(tmp_path_factory.mktemp("two"), aspects=(Q, A))
        run_stages(run)
    return run.reopened()


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("parts", "reason"),
    [((), "it has no scores"), (("train",), "no image of the test split has a score of authenticity")],
)
def test_corrections_alone_train_and_an_aspect_that_lacks_scores_is_kept(
    judges_two: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    parts: tuple[str, ...],
    reason: str,
) -> None:
    before = judges_two.checkpoint_folder
    said = [
        replace(s, mos={a: mos for a, mos in s.mos.items() if a is Q or part in parts}, split=part)
        for n, s in enumerate(judges_two.samples)
        for part in ["test" if n % 4 == 0 else "train"]
    ]
    export = write_export(tmp_path / "export", said)
    run, models = tmp_path / "run", tmp_path / "models"
    command = [
        "run",
        str(CORRECTIONS),
        "--run",
        str(run),
        "--register",
        str(models),
        "--set",
        f"start={before}",
    ]
    command += ["--add-annotations", str(export)]
    sentence = f"authenticity keeps the predictor of nano 0.1.0, as {reason}"
    assert main([*command, "--plan"]) == 0
    assert sentence in capsys.readouterr().out and not run.exists()

    assert main(command) == 0
    (candidate,) = candidates(models)
    card, old = candidate.card, read_card(before)
    assert (candidate.folder / predictor_file(A)).read_bytes() == (before / predictor_file(A)).read_bytes()
    assert (card.predictors[A], card.scales[A], card.calibration[A]) == (
        old.predictors[A],
        old.scales[A],
        old.calibration[A],
    )
    assert card.predictors.keys() == {Q, A}
    assert card.learned_from.endswith("authenticity judged as by nano 0.1.0, for lack of scores")
    assert sentence in (run / "log.txt").read_text()
    assert {row.aspect for row in candidate.comparison.rows} == {Q}


@pytest.mark.usefixtures("scripted")
def test_an_aspect_that_the_model_in_service_does_not_judge_is_new(
    before: Path, judges_two: RunFolder, tmp_path: Path
) -> None:
    said = [replace(s, split="train" if n % 4 else "test") for n, s in enumerate(judges_two.samples)]
    export, run = write_export(tmp_path / "export", said), tmp_path / "run"
    command = ["run", str(CORRECTIONS), "--run", str(run), "--add-annotations", str(export)]
    assert main([*command, "--set", f"start={before}", "--register", str(tmp_path / "models")]) == 0
    facts = {a: json.loads((run / "fit" / a / "seed-0" / "fit.json").read_text()) for a in (Q, A)}
    assert "moved" in facts[Q] and "moved" not in facts[A]
    assert len(facts[Q]["errors"]) == sum(sample.split == "train" for sample in said)
    assert read_card(run / "checkpoint").predictors.keys() == {Q, A}


@pytest.mark.usefixtures("scripted")
def test_corrections_that_train_nothing_are_told(
    judges_two: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export = write_export(tmp_path / "export", [replace(s, split="train") for s in judges_two.samples])
    command = ["run", str(CORRECTIONS), "--run", str(tmp_path / "run"), "--add-annotations", str(export)]
    assert main([*command, "--set", f"start={judges_two.checkpoint_folder}"]) == 2
    assert "nothing to train: quality: no image of the test split has a score" in capsys.readouterr().err


def test_the_table_says_what_it_does_not_know() -> None:
    row = Compared("data", A, 3, None, Agreement(0.5, 0.5, 1.0, -0.25))
    told = str(Comparison("nano 0.2.0", "new 1", (row,)))
    assert "authenticity, of the data" in told and "– → -0.250" in told
    assert "Not better: no held-out image was scored by people" in told


def test_one_seed_has_no_spread_to_ship(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", str(config), "--set", "seeds=[0]", "--plan"]) == 2
    assert "ship_seeds needs several seeds" in capsys.readouterr().err
