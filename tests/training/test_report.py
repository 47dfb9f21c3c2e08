"""The report is one page that needs nothing else, shows the right cases, and trusts no text."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from training.evaluation.evaluate import PREDICTION_COLUMNS, summary
from training.evaluation.report import write_report

SCALE = MosScale(0.0, 5.0)
SCALES = dict.fromkeys(Aspect, SCALE)
FACTS = {"Settings": "configs/nano.yaml", "Revision": "0123abc"}
HOSTILE = '<script src="https://evil.example/x.js"></script>"><img src=x onerror=alert(1)>{{ 7 * 7 }}</style>'
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a page holds: elements in order, its text, and whether every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "unclosed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [attrs for name, attrs in self.elements if name == tag and wanted.items() <= attrs.items()]


def predictions(folder: Path, count: int = 24, seed: int = 0) -> pd.DataFrame:
    """Quality and correspondence of a few drawn images; the first ones are missed most."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (400, 200), tuple(rng.integers(0, 255, 3).tolist())).save(path)
        for aspect in ("quality", "correspondence"):
            mos = float(rng.uniform(1, 4))
            error = {0: 0.9, 1: -0.9, 2: 0.7, 3: -0.7}.get(number, float(rng.uniform(-0.4, 0.4)))
            rows.append(
                {
                    "sample": f"s{number:02}",
                    "image": str(path),
                    "prompt": f"picture {number % 6} of a pen" if number else None,
                    "generator": "ab"[number % 2],
                    "source": "drawn",
                    "split": "test",
                    "aspect": aspect,
                    "mos": mos,
                    "predicted": mos + error,
                    "raw": mos + error,
                    "rating": str(SCALE.rating(mos + error)),
                    "spoken_rating": str(SCALE.rating(mos)),
                    "description": f"said about {number}",
                    "reference": None if number == 5 else f"written about {number}",
                }
            )
    return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))


def write(out: Path, table: pd.DataFrame, found: dict, title: str = "A run", **more: object) -> str:
    return write_report(out, title, table, found, SCALES, FACTS, **more).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return predictions(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def found(table: pd.DataFrame) -> dict:
    return summary(table, SCALE)


@pytest.fixture(scope="module")
def out(table: pd.DataFrame, found: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report that sets a published method beside the run."""
    folder = tmp_path_factory.mktemp("out") / "report"
    theirs = {"Paper": {"quality": {"srcc": 0.9045, "plcc": 0.9317}}}
    write(folder, table, found, compare=theirs)
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), f"<{tag} {name}={value[:80]}>"
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object", "embed")]
    assert "http://" not in page.text and "https://" not in page.text
    assert "@import" not in page.text
    (policy,) = [attrs for attrs in page.all("meta") if "http-equiv" in attrs]
    assert policy["content"].startswith("default-src 'none'")


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for _, attrs in page.elements if (attrs.get("href") or "").startswith("#")}
    assert {"quality", "correspondence", "facts"} <= links <= set(ids)


def test_numbers_plots_and_facts_are_there(page: Page, out: Path, found: dict) -> None:
    told = json.loads((out / "metrics.json").read_text())
    assert told["summary"] == found and told["facts"] == FACTS
    for aspect in ("quality", "correspondence"):
        for metric in ("srcc", "plcc", "plcc_logistic", "krcc", "rmse"):
            assert f"{found[aspect][metric]:.3f}" in page.text
        assert f"{found[aspect]['srcc_low']:.3f} to {found[aspect]['srcc_high']:.3f}" in page.text
    # a radar, and for each aspect a scatter plot and the generators
    assert len(page.all("svg")) == 1 + 2 * 2
    assert len(page.all("table", class_="confusion")) == 2 * 2
    for text in ("Paper", "0.904", "Spoken rating words", "configs/nano.yaml", "0123abc", "0 to 5"):
        assert text in page.text


def test_colours_follow_the_page(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "stroke: var(--series-2)" in text
    assert "#0000a" not in text and "#0000b" not in text


def test_the_worst_case_comes_first_and_none_comes_twice(page: Page) -> None:
    samples = [attrs["data-sample"] for attrs in page.all("article")]
    for shown in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):  # of either aspect
        assert shown[:2] == ["s00", "s02"], "overestimated by 0.9 and 0.7"
        assert shown[4:6] == ["s01", "s03"], "underestimated by as much"
        assert len(shown) == len(set(shown)) == 12
    for text in ("No prompt", "said about 1", "written about 1", "+0.90", "−0.90"):
        assert text in page.text


def test_pictures_are_small_jpegs(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 2 * 12
    for attrs in pictures:
        content = base64.b64decode(attrs["src"].partition(",")[2])
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.size) == ("JPEG", (320, 160))


def test_pictures_stand_upright_and_missing_ones_are_reported(
    table: pd.DataFrame, found: dict, tmp_path: Path
) -> None:
    turned = Image.new("RGB", (400, 200))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    changed, found = table[table["aspect"] == "quality"].copy(), {"quality": found["quality"]}
    changed.loc[changed["sample"] == "s00", "image"] = str(tmp_path / "turned.jpg")
    changed.loc[changed["sample"] == "s02", "image"] = str(tmp_path / "gone.jpg")
    page = Page(write(tmp_path / "out", changed, found))
    image = Image.open(io.BytesIO(base64.b64decode(page.all("img")[0]["src"].partition(",")[2])))
    assert image.size == (160, 320)
    assert f"No image: There is no file {tmp_path / 'gone.jpg'}" in page.text
    assert len(page.all("img")) == 11


def test_text_of_others_stays_text(table: pd.DataFrame, found: dict, tmp_path: Path) -> None:
    hostile = table.assign(
        prompt=HOSTILE, description=HOSTILE, reference=HOSTILE, generator=HOSTILE, source="$x_1$ </svg>"
    )
    hostile.loc[hostile.index[::3], "generator"] = "$\\alpha$ & <b>"
    text = write(tmp_path, hostile, found, HOSTILE, compare={HOSTILE: {}})
    page = Page(text)
    assert not page.all("script") and not page.all("b")
    assert len(page.all("img")) == 24 and not [attrs for attrs in page.all("img") if "onerror" in attrs]
    assert "{{ 7 * 7 }}" in page.text
    assert "$\\alpha$ & <b>" in page.text


def test_the_csv_is_the_table(out: Path, table: pd.DataFrame) -> None:
    read = pd.read_csv(out / "predictions.csv", keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_groups_are_written_with_what_they_group_by(out: Path) -> None:
    found = pd.read_csv(out / "groups.csv")
    generators = found[(found["grouping"] == "generator") & (found["aspect"] == "quality")]
    assert list(generators["group"]) == ["a", "b"]
    assert list(generators["n"]) == [12, 12]
    prompts = found[found["grouping"] == "same prompt"]
    assert list(prompts["prompts"]) == [6, 6]
    assert prompts["srcc"].between(-1, 1).all()


def test_the_same_input_gives_the_same_bytes(table: pd.DataFrame, found: dict, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, table, found, compare={"Paper": {"quality": {"srcc": 0.9}}})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["groups.csv", "metrics.json", "predictions.csv", "report.html"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_very_few_images_make_a_report_too(table: pd.DataFrame, tmp_path: Path) -> None:
    few = table[table["aspect"] == "quality"].head(2).assign(prompt=None, spoken_rating=None, generator=None)
    page = Page(write(tmp_path, few, summary(few, SCALE)))
    assert "images of the same prompt cannot be compared" in page.text
    assert len(page.all("article")) == 2
    told = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert told["summary"]["quality"]["n"] == 2
    one = few.head(1)
    alone = Page(write(tmp_path, one, summary(one, SCALE)))
    assert "–" in alone.text and not re.search(r"\bnan\b", alone.text)


def test_what_is_missing_is_named(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no predictions"):
        write_report(tmp_path, "x", table.head(0), {}, SCALES, {})
    with pytest.raises(InputError, match="lacks the columns mos, raw"):
        write_report(tmp_path, "x", table.drop(columns=["mos", "raw"]), {}, SCALES, {})
    for name in [
        name for name in sys.modules if name.startswith(("matplotlib", "training.evaluation.report."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("page", "plots"):
        monkeypatch.delattr(f"training.evaluation.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib: pip install \"m3agiqa\[train\]\""):
        write_report(tmp_path / "none", "x", table, {}, SCALES, {})
    assert not (tmp_path / "none").exists()
