import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3agiqa import Aspect, InputError
from m3agiqa.samples import Sample, read_samples, write_samples

aspects = st.sampled_from(Aspect)
texts = st.text(st.characters(codec="utf-8"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.builds(
            Sample,
            id=texts,
            image=st.sampled_from([Path("images/a.png"), Path("ü 1.png")]),
            prompt=st.none() | texts,
            mos=st.dictionaries(aspects, st.floats(1, 5)),
            descriptions=st.dictionaries(aspects, texts),
            distorted=st.booleans(),
            raters=st.dictionaries(aspects, st.integers(1, 99)),
        ),
        max_size=3,
    )
)
def test_roundtrip(tmp_path: Path, rows: list[Sample]) -> None:
    placed = [Sample(**{**vars(row), "image": tmp_path / row.image}) for row in rows]
    write_samples(placed, tmp_path / "samples.jsonl")
    assert read_samples(tmp_path / "samples.jsonl") == placed


def test_images_below_the_file_are_stored_relative_to_it(tmp_path: Path) -> None:
    inside = Sample("1", tmp_path / "set" / "images" / "a.png")
    outside = Sample("2", tmp_path / "elsewhere" / "b.png")
    path = tmp_path / "set" / "samples.jsonl"
    write_samples([inside, outside], path)
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == [
        "images/a.png",
        str(tmp_path / "elsewhere" / "b.png"),
    ]
    (tmp_path / "set").rename(tmp_path / "moved")
    assert read_samples(tmp_path / "moved" / "samples.jsonl")[0].image == tmp_path / "moved/images/a.png"


def test_files_from_before_there_were_raters_are_read(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"id": "1", "image": "a.png", "mos": {"quality": 2}}\n')
    (sample,) = read_samples(tmp_path / "samples.jsonl")
    assert (sample.mos, sample.raters) == ({Aspect.QUALITY: 2}, {})


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "3",
        "{}",
        '{"id": "1"}',
        '{"id": "1", "image": "a", "mos": {"beauty": 1}}',
        '{"image": 1, "id": 2}',
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "samples.jsonl"
    write_samples([Sample("1", tmp_path / "a.png")], path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"samples\.jsonl, line 2 is not (a sample|JSON)"):
        read_samples(path)
