"""Splits: every sample in one part, no group or image cut, shares near the ratios, the same in any order."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from training.data.splits import SPLIT_PARTS, SplitConfig, apportion, assign, write_split

DRAWN = ("image", "prompt", "generator")


def make(count: int, prompts: int = 10_000, generators: int = 5) -> list[Sample]:
    return [
        Sample(f"s{i}", Path(f"{i}.png"), f"prompt {i % prompts}", generator=f"g{i % generators}")
        for i in range(count)
    ]


def shares(samples: list[Sample]) -> tuple[int, ...]:
    counts = Counter(sample.split for sample in samples)
    return tuple(counts[part] for part in SPLIT_PARTS)


@st.composite
def sample_sets(draw: st.DrawFn) -> list[Sample]:
    """At least four prompts and generators, in groups of uneven size; some samples have no prompt."""
    count = draw(st.integers(8, 60))
    prompts = [
        f"p{i}" if i < 4 else draw(st.sampled_from(["p0", "p1", "p2", "p3", "p4", None]))
        for i in range(count)
    ]
    generators = [
        f"g{i}" if i < 4 else draw(st.sampled_from(["g0", "g1", "g2", "g3", "g4"])) for i in range(count)
    ]
    return [
        Sample(f"s{i}", Path(f"{i}.png"), prompt, generator=generator)
        for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True))
    ]


ratios = st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
configs = st.builds(
    SplitConfig, st.sampled_from(DRAWN), ratios, st.integers(0, 99), holdout=st.sampled_from([0, 0.1, 0.3])
)


def assigned(samples: list[Sample], config: SplitConfig) -> list[Sample]:
    """As assign; where training has a single group, it must refuse to set some of it aside."""
    group = {"prompt": lambda s: s.prompt or s.id, "generator": lambda s: s.generator}.get(config.by)
    if group and config.holdout and not config.ratios[2]:
        plain = assign(samples, replace(config, holdout=0))
        if len({group(sample) for sample in plain if sample.split == "train"}) < 2:
            with pytest.raises(InputError, match="into train, validation, but have too few"):
                assign(samples, config)
            reject()
    return assign(samples, config)


@given(sample_sets(), configs)
def test_every_sample_keeps_all_but_its_part(samples: list[Sample], config: SplitConfig) -> None:
    split = assigned(samples, config)
    assert [replace(sample, split="train") for sample in split] == samples
    assert {sample.split for sample in split} <= set(SPLIT_PARTS)


@given(sample_sets(), configs, st.randoms())
def test_the_order_of_samples_changes_nothing(samples: list[Sample], config: SplitConfig, rng) -> None:
    mixed = list(samples)
    rng.shuffle(mixed)
    split = assigned(samples, config)
    by_id = {sample.id: sample for sample in assign(mixed, config)}
    assert [by_id[sample.id] for sample in samples] == split


@given(sample_sets(), configs)
def test_no_group_is_cut_and_no_wanted_part_is_empty(samples: list[Sample], config: SplitConfig) -> None:
    split = assigned(samples, config)
    if config.by == "image":
        return
    parts: dict[str, set[str]] = {}
    for sample in split:
        group = sample.prompt if config.by == "prompt" else sample.generator
        parts.setdefault(group or sample.id, set()).add(sample.split)
    assert all(len(found) == 1 for found in parts.values())
    _, test, validation = config.ratios
    assert ("test" in {s.split for s in split}) == bool(test)
    assert ("validation" in {s.split for s in split}) == bool(validation or config.holdout)


@given(st.integers(0, 500), ratios, st.integers(0, 5))
def test_images_are_drawn_in_the_exact_ratio(count: int, ratio: tuple[int, int, int], seed: int) -> None:
    found = shares(assign(make(count), SplitConfig("image", ratio, seed, holdout=0)))
    assert list(found) == apportion(count, ratio)
    assert sum(found) == count
    assert all(abs(n - count * r / sum(ratio)) < 1 for n, r in zip(found, ratio, strict=True))


@given(st.integers(20, 300), st.integers(0, 5))
def test_prompts_of_few_images_come_as_near_as_one_prompt(count: int, seed: int) -> None:
    found = shares(assign(make(count, prompts=-(-count // 4)), SplitConfig("prompt", (7, 2, 1), seed)))
    wanted = [count * r / 10 for r in (7, 2, 1)]
    assert all(abs(n - w) <= 8 for n, w in zip(found, wanted, strict=True))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=8, max_size=40), st.integers(0, 9))
def test_samples_of_one_image_are_never_in_two_parts(rows: list[tuple[int, int]], seed: int) -> None:
    named = [(image, f"p{prompt}" if prompt else None) for image, prompt in rows]
    alone = [(100 + i, f"alone {i}") for i in range(4)]  # so that there is something to split
    samples = [
        Sample(f"s{i}", Path(f"{image}.png"), prompt) for i, (image, prompt) in enumerate(named + alone)
    ]
    for by in ("image", "prompt"):
        split = assign(samples, SplitConfig(by, (2, 1, 1), seed))
        for about in ("image", "prompt") if by == "prompt" else ("image",):
            parts: dict[object, set[str]] = {}
            for sample in split:
                if getattr(sample, about) is not None:
                    parts.setdefault(getattr(sample, about), set()).add(sample.split)
            assert all(len(found) == 1 for found in parts.values()), (by, about)


def test_prompts_that_share_an_image_are_held_out_together() -> None:
    chained = [Sample(str(i), Path(f"{(i + 1) // 2}.png"), f"p{i // 2}") for i in range(6)]
    samples = chained + make(20)
    for seed in range(10):
        split = assign(samples, SplitConfig("prompt", (4, 1, 0), seed, holdout=0.2))
        assert len({sample.split for sample in split[:6]}) == 1
        assert {sample.split for sample in split} == set(SPLIT_PARTS)


def test_one_image_is_one_however_its_path_is_written(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "sub" / ".." / "a.png"]
    twice = [Sample(f"a{i}", path) for i, path in enumerate(paths)]
    for seed in range(10):
        split = assign([*twice, *make(3)], SplitConfig("image", (1, 1, 1), seed))
        assert split[0].split == split[1].split


def test_an_image_of_two_generators_is_named() -> None:
    samples = [*make(10), Sample("again", Path("3.png"), generator="g4")]
    with pytest.raises(
        InputError, match=r"The image 3\.png is of the generator g3 in the sample s3, but of g4"
    ):
        assign(samples, SplitConfig("generator"))
    assign([*samples[:-1], replace(samples[-1], generator="g3")], SplitConfig("generator"))


def test_the_nearest_choice_of_generators_is_made() -> None:
    sizes = {"sd1.5": 1200, "midjourney": 592, "AttnGAN": 300, "glide": 300, "xl2.2": 300, "DALLE2": 290}
    samples = [
        Sample(f"{name} {i}", Path(f"{name}{i}.png"), generator=name)
        for name, n in sizes.items()
        for i in range(n)
    ]
    for seed in range(5):
        train, test, validation = shares(assign(samples, SplitConfig("generator", seed=seed, holdout=0)))
        assert (train, validation) == (2982 - test, 0)
        assert abs(test - 2982 / 5) <= min(abs(600 - 596.4), abs(592 - 596.4)) + 1


def test_the_paper_ratios_of_agiqa_3k() -> None:
    assert shares(assign(make(2982), SplitConfig("image", (4, 1, 0), holdout=0))) == (2386, 596, 0)


def test_seeds_draw_differently() -> None:
    samples = make(100, prompts=25)
    for by in DRAWN:
        drawn = {tuple(s.split for s in assign(samples, SplitConfig(by, seed=seed))) for seed in range(8)}
        assert len(drawn) > 1, by


def test_prompts_are_compared_without_case_and_white_space() -> None:
    texts = ["a red  Boat", "A red boat ", "a\nred boat", *(f"other {i}" for i in range(9))]
    samples = [Sample(str(i), Path(f"{i}.png"), text) for i, text in enumerate(texts)]
    for seed in range(10):
        split = assign(samples, SplitConfig("prompt", (1, 1, 1), seed))
        assert len({sample.split for sample in split[:3]}) == 1


def test_holdout_takes_whole_prompts_of_training_images() -> None:
    given_parts = [
        replace(s, split="test" if i < 40 else "train") for i, s in enumerate(make(200, prompts=50))
    ]
    split = assign(given_parts, SplitConfig(holdout=0.25))
    assert shares(split) == (120, 40, 40)
    assert [s.split for s in split[:40]] == ["test"] * 40
    prompts = {part: {s.prompt for s in split if s.split == part} for part in SPLIT_PARTS}
    assert not prompts["train"] & prompts["validation"]
    assert assign(given_parts, SplitConfig(holdout=0)) == given_parts


def test_a_validation_part_is_kept_as_it_is() -> None:
    parts = [replace(s, split=SPLIT_PARTS[i % 3]) for i, s in enumerate(make(30))]
    assert assign(parts, SplitConfig()) == parts


def test_validation_stands_in_for_a_wanted_test_part() -> None:
    parts = [replace(s, split="validation" if i % 4 == 0 else "train") for i, s in enumerate(make(40))]
    assert shares(assign(parts, SplitConfig(ratios=(3, 1, 0), holdout=0))) == (30, 10, 0)
    assert shares(assign(parts, SplitConfig(ratios=(7, 2, 1), holdout=0))) == (30, 0, 10)


def test_data_without_a_split_must_be_split_somehow() -> None:
    with pytest.raises(InputError, match=r"without a split.*by image, prompt or generator"):
        assign(make(10), SplitConfig())
    assert shares(assign(make(10), SplitConfig(ratios=(1, 0, 0), holdout=0))) == (10, 0, 0)


@pytest.mark.parametrize("form", ["csv", "jsonl", "lists", "names only"])
def test_a_published_split_is_read_back(tmp_path: Path, form: str) -> None:
    samples = assign(make(50), SplitConfig("image", (3, 1, 1)))
    path = tmp_path / "split.csv"
    write_split(samples, path)
    if form == "jsonl":
        path = tmp_path / "split.jsonl"
        path.write_text("".join(json.dumps({"id": s.id, "split": s.split}) + "\n" for s in samples))
    elif form == "lists":
        path = tmp_path / "lists"
        path.mkdir()
        for part, name in zip(SPLIT_PARTS, ("train", "test", "val"), strict=True):
            lines = [f"folder/{s.image.name}\n" for s in samples if s.split == part]
            (path / f"{name}.txt").write_text("".join(lines))
    elif form == "names only":
        path.write_text("image,split\n" + "".join(f"{s.image},{s.split}\n" for s in samples))
    unsplit = [replace(sample, split="train") for sample in samples]
    assert assign(unsplit, SplitConfig("generator", file=path)) == samples


def test_images_of_the_same_name_are_distinguished_by_id(tmp_path: Path) -> None:
    samples = [Sample("a", Path("a/1.png"), split="train"), Sample("b", Path("b/1.png"), split="test")]
    write_split(samples, tmp_path / "split.csv")
    unsplit = [replace(sample, split="train") for sample in samples]
    assert assign(unsplit, SplitConfig(file=tmp_path / "split.csv", holdout=0)) == samples
    (tmp_path / "names.csv").write_text("image,split\na/1.png,train\nb/1.png,test\n")
    with pytest.raises(InputError, match="2 of 2 samples are; the first is a"):
        assign(unsplit, SplitConfig(file=tmp_path / "names.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\ns0,train\n", r"split\.csv does not say.* 1 of 2 samples are; the first is s1"),
        ("id,split\ns0,train\ns1,exam\n", r"line 3: 'exam' is no part"),
        ("id,split\ns0,train\ns1,\n", r"line 3 needs id or image, and split"),
        ("id,split\ns0,train\ns1,test\ns0,test\n", r"line 4: s0 is in test, but was in train before"),
        ("", "is empty"),
    ],
)
def test_wrong_split_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        assign(make(2), SplitConfig(file=tmp_path / "split.csv"))


def test_a_folder_without_lists_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has none of train\.txt"):
        assign(make(2), SplitConfig(file=tmp_path))


@pytest.mark.parametrize(
    ("samples", "config", "message"),
    [
        (make(10, prompts=1), SplitConfig("prompt"), r"into train, test, but have too few prompts \(1\)"),
        (
            make(10, generators=2),
            SplitConfig("generator", (1, 1, 1)),
            r"into train, test, validation, .* too few generators \(2\)",
        ),
        ([Sample("x", Path("x.png"))], SplitConfig("generator"), "The sample x has no generator"),
    ],
)
def test_too_little_to_split_is_reported(samples: list[Sample], config: SplitConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign(samples, config)


@pytest.mark.parametrize(
    "wrong",
    [{"by": "colour"}, {"ratios": (0, 1, 1)}, {"ratios": (4, 1)}, {"ratios": (4, -1, 0)}, {"holdout": 1}],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        SplitConfig(**wrong)
