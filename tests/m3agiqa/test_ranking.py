"""Several images of one prompt in order: places, sure differences, what is left out; and the command."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat

from m3agiqa import Aspect, Assessor, InputError, MosScale, Stopped, cli
from m3agiqa.backbones.base import Delta, Generation, Rating
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.predictor.model import Prediction
from m3agiqa.ranking import Difference, ranked_as_assessed

HALF_WIDTH = 0.5  # so that differences of more than 0.71 are clear


@pytest.fixture
def assessor(scripted: Assessor) -> Assessor:
    """All aspects follow the image's colours, from 1 to 5: red, green, blue."""
    aspects = list(Aspect)

    def describe(requests: list, stop: object = lambda: False) -> Iterator[Delta | Generation]:
        row = 0
        for request in requests:
            means = ImageStat.Stat(request.image).mean
            for conversation in request.conversations:
                if stop():
                    raise Stopped("Stopped on request.")
                yield Generation(row, "It is calm.", Rating.FAIR, means[aspects.index(conversation.aspect)])
                row += 1

    scripted.backbone.describe = describe
    for predictor in scripted.predictors.values():
        predictor.predict_all = lambda means: [Prediction(1 + 4 * x / 255, torch.zeros(2)) for x in means]
    calibration = dict.fromkeys(Aspect, Calibration(HALF_WIDTH, 100, (2.0, 4.0), 3827))
    return Assessor(scripted.backbone, scripted.predictors, replace(scripted.card, calibration=calibration))


def plain(*colour: int) -> Image.Image:
    return Image.new("RGB", (40, 40), colour)


def saved(folder: Path, name: str, *colour: int) -> str:
    path = folder / name
    plain(*colour).save(path)
    return str(path)


def test_places_and_sure_differences(assessor: Assessor) -> None:
    ranking = assessor.rank([plain(51, 51, 51), plain(255, 0, 102), plain(204, 102, 51)], " a  ball ")
    assert ranking.prompt == "a ball"
    places = ranking.places()
    assert [(each.place, each.image.name) for each in places] == [
        (1, "image 2"), (1, "image 3"), (3, "image 1"),
    ]  # fmt: skip
    assert [each.figure.mos for each in places] == [2.867, 2.867, 1.8]
    assert [each.to_next for each in places] == [Difference.EQUAL, Difference.CLEAR, None]
    assert [each.to_first for each in places] == [None, Difference.EQUAL, Difference.CLEAR]
    assert (places[0].figure.low, places[0].figure.high) == (pytest.approx(2.367), pytest.approx(3.367))
    by_quality = ranking.places("quality")
    assert [(each.image.name, each.figure.mos) for each in by_quality] == [
        ("image 2", 5.0), ("image 3", 4.2), ("image 1", 1.8),
    ]  # fmt: skip
    assert by_quality[0].to_next is Difference.CLEAR  # 0.8 > √2 · 0.5
    told = ranking.to_dict("quality")
    assert [each["image"] for each in told["images"]] == ["image 2", "image 3", "image 1"]
    assert told["images"][0]["aspects"]["authenticity"]["mos"] == 2.6
    assert told["images"][0]["overall"] == {"mos": 2.867, "low": 2.367, "high": 3.367}


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        ({Aspect.QUALITY: 1}, [1, 0]),
        ({Aspect.CORRESPONDENCE: 2, Aspect.QUALITY: 1}, [0, 1]),
        ({"authenticity": 0.5, "quality": 0.0}, [0, 1]),  # the same: in the order in which they were given
    ],
)
def test_weights_decide_the_overall_order(assessor: Assessor, weights: dict, order: list[int]) -> None:
    images = [plain(0, 200, 90), plain(200, 0, 90)]
    assert [each.image.index for each in assessor.rank(images, "a ball", weights).places()] == order


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"quality": -1}, "The weight of quality is -1; give a number from 0 up."),
        ({"beauty": 1}, "There is no aspect 'beauty' to give a weight"),
        (
            {"correspondence": 1},
            "Nothing is left of the overall score; give quality or authenticity a weight",
        ),
    ],
)
def test_weights_that_cannot_be(assessor: Assessor, weights: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        assessor.rank([plain(1, 1, 1), plain(2, 2, 2)], None, weights)


def test_without_a_prompt_correspondence_is_left_out(assessor: Assessor) -> None:
    ranking = assessor.rank([plain(0, 255, 0), plain(51, 0, 51)])
    assert ranking.orders == ("overall", "quality", "authenticity")
    assert [each.figure.mos for each in ranking.places()] == [1.8, 1.0]
    with pytest.raises(InputError, match="There is no order by correspondence without a prompt"):
        ranking.places("correspondence")


def test_scales_that_differ_are_brought_to_a_common_one(assessor: Assessor) -> None:
    scales = {**assessor.card.scales, Aspect.QUALITY: MosScale(0, 100)}
    mixed = Assessor(
        assessor.backbone, assessor.predictors, replace(assessor.card, scales=scales, calibration={})
    )
    first, second = mixed.rank([plain(255, 255, 255), plain(0, 0, 0)], "a ball").places()
    assert (first.figure.mos, first.figure.scale) == (
        pytest.approx(1 + (4 * 0.05 + 8) / 3, abs=1e-3),
        MosScale(1, 5),
    )
    assert (first.figure.low, second.to_first) == (None, Difference.UNKNOWN)


def test_what_cannot_be_ranked_leaves_the_others(assessor: Assessor, tmp_path: Path) -> None:
    good = [saved(tmp_path, "a.png", 10, 0, 0), saved(tmp_path, "b.webp", 250, 9, 9)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(good[0]).read_bytes()[:60])
    again = saved(tmp_path, "again.bmp", 10, 0, 0)
    ranking = assessor.rank([good[0], broken, again, tmp_path / "gone.png", good[1]], "a ball")
    assert {Path(each.image.name).name for each in ranking.places()} == {"a.png", "b.webp"}
    assert {Path(each.name).name: each.reason for each in ranking.left_out} == {
        "broken.png": "The image file is damaged or cut off; save or download it again.",
        "again.bmp": f"The same picture as {good[0]}, pixel by pixel; it is ranked once.",
        "gone.png": f"There is no file {tmp_path / 'gone.png'}.",
    }
    with pytest.raises(
        InputError, match=r"None of the 2 images can be judged\. .*broken\.png: The image file"
    ):
        assessor.rank([broken, tmp_path / "gone.png"], "a ball")


@pytest.mark.parametrize(
    ("count", "sentence"),
    [(1, "1 image was given; 2 to 24 can be compared at once."), (25, "25 images were given; 2 to 24 can")],
)
def test_too_few_and_too_many(assessor: Assessor, count: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        assessor.rank([plain(number, 0, 0) for number in range(count)], "a ball")


def test_the_first_image_comes_first_and_stop_is_heard(assessor: Assessor) -> None:
    images = [plain(10 * number, 0, 0) for number in range(12)]
    growing = ranked_as_assessed(assessor, images, "a ball")
    assert [len(ranking.images) for ranking in growing] == [1, 9, 12]
    stopped: list[bool] = []
    growing = ranked_as_assessed(assessor, images, "a ball", stop=lambda: bool(stopped))
    next(growing)
    stopped.append(True)
    with pytest.raises(Stopped):
        next(growing)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def loaded(assessor: Assessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assessor, "from_pretrained", lambda *_, **options: assessor)


def test_the_command_prints_a_table(
    assessor: Assessor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [saved(tmp_path, "a.png", 10, 0, 0), saved(tmp_path, "b.png", 250, 90, 90)]
    table = tmp_path / "out.csv"
    command = ["compare", *images, images[0], "--prompt", "a ball", "--csv", str(table)]
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(each["image"]).name for each in told[0]["images"]] == ["b.png", "a.png"]
    as_csv = table.read_bytes()
    assert cli.main(command) == 0
    assert table.read_bytes() == as_csv
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "Prompt: a ball"
    assert lines[1].split() == ["Place", "Image", "Overall", "Quality", "Correspondence", "Authenticity"]
    assert lines[2].split()[0] == "1" and lines[2].endswith("clearly better than the next")
    assert "3.25 (2.7–3.7)" in lines[2] and "b.png" in lines[2]
    assert "Clearly better: the difference is larger than the 80 % interval" in out
    assert "is left out. The same picture as" in err
    rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    assert [(row["place"], Path(row["image"]).name) for row in rows] == [
        ("1", "b.png"),
        ("2", "a.png"),
        ("", "a.png"),
    ]
    assert (rows[0]["overall"], rows[0]["quality_mos"], rows[0]["to_next"]) == (
        "3.249",
        "4.922",
        "clearly better",
    )
    assert rows[2]["error"].startswith("The same picture as")


def test_a_table_is_grouped_by_prompt(
    assessor: Assessor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"a.png": "a ball", "b.png": "a hill", "c.png": "a  ball", "d.png": "a hill", "e.png": "a sea"}
    for number, name in enumerate(names):
        saved(tmp_path, name, 50 * number, 0, 0)
    table = tmp_path / "images.csv"
    rows = [*(f"{name},{prompt}" for name, prompt in names.items()), ",a ball", "gone.png,a ball"]
    table.write_text("\n".join(["image,prompt", *rows]))
    assert cli.main(["compare", str(table), "--json", "--order", "quality"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [(each["prompt"], [one["image"] for one in each["images"]]) for each in told] == [
        ("a ball", ["c.png", "a.png"]),
        ("a hill", ["d.png", "b.png"]),
    ]
    assert [each["image"] for each in told[0]["left_out"]] == ["gone.png"]
    assert err.count("e.png is left out: it is the only image with the prompt “a sea”.") == 1
    assert err.count("The row names no image.") == 1


def test_groups_that_cannot_be_compared_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, "a.png", 10, 0, 0)
    saved(tmp_path, "b.png", 20, 0, 0)
    table = tmp_path / "images.csv"
    too_many = ["a.png,a crowd"] * 25 + ["a.png,"] * 25
    table.write_text("\n".join(["image,prompt", *too_many, "b.png,a ball", "a.png,a ball"]))
    assert cli.main(["compare", str(table), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [each["prompt"] for each in json.loads(out)] == ["a ball"]
    limit = "25 images were given; 2 to 24 can be compared at once."
    assert err.count(f"The images with the prompt “a crowd” are left out. {limit}") == 1
    assert err.count(f"The images without a prompt are left out. {limit}") == 1
    for rows in (too_many, [",a ball", ",a ball"]):
        table.write_text("\n".join(["image,prompt", *rows]))
        assert cli.main(["compare", str(table)]) == 2
        assert capsys.readouterr().err.endswith("Nothing is left to compare.\n")
    table.write_text("image,prompt\na.png,\nb.png,\nb.png,a ball\na.png,a ball")
    for option in ("--order=correspondence", "--weights=correspondence=1"):
        assert cli.main(["compare", str(table), option, "--json"]) == 0
        out, err = capsys.readouterr()
        assert [each["prompt"] for each in json.loads(out)] == ["a ball"]
        assert "The images without a prompt are left out. " in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.png"], "1 image was given; 2 to 24 can be compared at once."),
        (["a.png"] * 25, "25 images were given; 2 to 24 can be compared at once. Compare them in groups"),
        (
            ["a.png", "b.png", "--order", "correspondence"],
            "There is no order by correspondence without a prompt",
        ),
        (["a.png", "b.png", "--weights", "quality=much"], "The weight of quality is not a number: 'much'."),
        (["a.png", "b.png", "--csv", "no/where.csv"], "There is no folder no to write where.csv to."),
        (["a.png", "."], "Give images, or one CSV, or one folder; not several or both."),
        (
            ["x.png", "y.png", "--prompt", "a ball"],
            "None of the 2 images can be judged. x.png: There is no file x.png.",
        ),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, "a.png", 10, 0, 0)
    saved(tmp_path, "b.png", 20, 0, 0)
    assert cli.main(["compare", *arguments]) == 2
    assert sentence in capsys.readouterr().err
