"""Settings come from YAML and go back unchanged; every mistake is named with its file and setting."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from m3agiqa.errors import InputError
from training.__main__ import _changed
from training.config import RunConfig, build, merged, plain, read_yaml
from training.evaluation.ablations import AblationConfig, RowSettings
from training.stages.distill import DistillConfig
from training.stages.finetune import FinetuneConfig

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))
RUNS = [path for path in CONFIGS if not path.name.startswith("ablate-")]
GRIDS = [path for path in CONFIGS if path.name.startswith("ablate-")]
FEWEST = {"data": {"format": "table", "path": "images.csv"}}

plain_settings = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
)
mappings = st.dictionaries(st.sampled_from("abcd"), plain_settings, max_size=3)


def complete(path: Path) -> dict:
    """A file's settings, with a data set for those that only others are based on."""
    return merged(FEWEST, read_yaml(path))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_settings_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = build(RunConfig, complete(path), path)
    written = tmp_path / "config.yaml"
    written.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    again = build(RunConfig, read_yaml(written), written)
    assert again == config
    assert plain(again) == plain(config)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_settings_say_something(path: Path) -> None:
    found, config = read_yaml(path), build(RunConfig, complete(path), path)
    assert plain(config) != plain(build(RunConfig, FEWEST, "defaults"))
    assert merged(plain(config), found)["fit"] == plain(config)["fit"], "nothing that is written gets lost"


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_row_of_a_shipped_grid_is_possible(path: Path) -> None:
    grid = build(AblationConfig, read_yaml(path), path)
    assert build(AblationConfig, plain(grid), path) == grid
    for table in grid.tables:
        variants = [build(RowSettings, merged(grid.shared, row), path) for row in table.rows.values()]
        assert len(set(map(str, variants))) == len(variants) > 1, table.title


def test_the_paper_s_settings_are_the_paper_s() -> None:
    paper = [path for path in RUNS if path.stem.startswith(("agiqa", "aigciqa"))]
    assert len(paper) == 6
    for path in paper:
        config = build(RunConfig, read_yaml(path), path)
        assert (config.fit.projection, config.fit.extractor, config.fit.pooling) == ("vocab", "xlstm", "mean")
        assert (config.fit.dim, config.fit.blocks, config.fit.lr) == (512, 4, 1e-5)
        assert config.fit.context_length == 512
        assert config.fit.losses.mse == 1 and config.fit.losses.worse == 0
        assert config.finetune.tune == ("vision",)
        assert config.finetune.adapter_lr == 2e-6
        assert len(config.data.aspects) == 1


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({}, "nano"),
        ({"start": None}, None),
        ({"start": "runs/a/checkpoint"}, "runs/a/checkpoint"),
        ({"backbone": "minicpm"}, None),
        ({"backbone": "hf:organisation/name"}, None),
        ({"backbone": "minicpm", "start": "runs/a/checkpoint"}, "runs/a/checkpoint"),
    ],
    ids=["nothing", "base", "checkpoint", "minicpm", "hf", "tuned"],
)
def test_what_is_shipped_is_started_from_where_there_is_one(given: dict, start: str | None) -> None:
    config = build(RunConfig, {**FEWEST, **given}, "settings")
    assert config.start == start
    assert build(RunConfig, plain(config), "settings") == config


# --- files ---------------------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_base_is_read_first_and_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, "shared/base.yaml", "base: deeper.yaml\nfit: {epochs: 3, lr: 0.1}\nname: base")
    write(tmp_path, "shared/deeper.yaml", "fit: {epochs: 9, batch: 7}\nseed: 5")
    path = write(tmp_path, "own.yaml", "base: shared/base.yaml\nfit: {lr: 0.5}")
    assert read_yaml(path) == {"fit": {"epochs": 3, "batch": 7, "lr": 0.5}, "name": "base", "seed": 5}


def test_shipped_settings_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, own = Path("training/configs/your-images.yaml"), "name: own"
    shipped = read_yaml(Path(__file__).parents[2] / name)
    monkeypatch.chdir(tmp_path)
    assert read_yaml(name) == shipped
    name.parent.mkdir(parents=True)
    name.write_text(own)
    assert read_yaml(name) == {"name": "own"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: missing.yaml", "Cannot read .*missing.yaml"),
        ("base: own.yaml", "own.yaml is its own base"),
        ("base: other.yaml", "is its own base"),
        ("base: [a, b]", "own.yaml: base is the name of another settings file"),
        ("base:", "own.yaml: base is the name of another settings file"),
        ("", "own.yaml needs settings"),
        ("- a\n- b", "own.yaml needs settings"),
        ("fit: [1, 2", "own.yaml is not YAML"),
        ("fit: !!python/object:os.system {}", "own.yaml is not YAML"),
    ],
)
def test_files_that_are_no_settings_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    write(tmp_path, "other.yaml", "base: own.yaml")
    with pytest.raises(InputError, match=sentence):
        read_yaml(write(tmp_path, "own.yaml", text))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: Käse".encode("latin-1"))
    for name in ("latin.yaml", "none.yaml", "."):
        with pytest.raises(InputError, match="Cannot read"):
            read_yaml(tmp_path / name)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fit": {"epohs": 3}}, r"no setting fit\.epohs; did you mean epochs\?"),
        ({"sedes": [1]}, r"no setting sedes; did you mean seeds\?"),
        ({"finetune": {"tun": ["vision"]}}, r"no setting finetune\.tun; did you mean tune\?"),
        ({"teacher": {"limits": {"xyz": 1}}}, r"no setting teacher\.limits\.xyz; known are concurrency"),
        ({"fit": {"epochs": "many"}}, r"fit\.epochs: .* \(found 'many'\)"),
        ({"fit": {"epochs": 2.5}}, r"fit\.epochs: .*fractional"),
        ({"fit": {"extractor": "xlst"}}, r"fit\.extractor: .*'xlstm'.* \(found 'xlst'\)"),
        ({"fit": {"losses": {"mse": []}}}, r"fit\.losses\.mse: "),
        ({"fit": 3}, "fit: .*dictionary"),
        ({"seeds": 3}, "seeds: "),
        ({"seeds": []}, "seeds: give at least one"),
        ({"seeds": [0, "x"]}, r"seeds\.1: "),
        ({"made_up": "maybe"}, "made_up: "),
        ({"learned_from": "{counts} images"}, r"learned_from: \{count\}"),
        ({"learned_from": "{count images"}, r"learned_from: \{count\}"),
        ({"data": {"aspects": ["beauty"]}}, r"data\.aspects\.0: .*'quality'"),
        ({"data": {"split": {"by": "size"}}}, r"data\.split\.by: .*'prompt'"),
        ({"data": {"split": {"ratios": [0, 1, 1]}}}, "ratios of a split"),
        ({"select_on": "train"}, "select_on: "),
        ({True: 1}, "Keys should be strings"),
    ],
)
def test_mistakes_are_named_with_file_and_setting(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=rf"^own\.yaml: .*{sentence}"):
        build(RunConfig, merged(FEWEST, changes), "own.yaml")


@pytest.mark.parametrize(("given", "missing"), [({}, "data"), ({"data": {"format": "table"}}, "data.path")])
def test_what_must_be_given_is_named(given: dict, missing: str) -> None:
    with pytest.raises(InputError, match=f"^own.yaml: the setting {missing} is missing"):
        build(RunConfig, given, "own.yaml")


def test_null_leaves_a_stage_out_and_an_empty_mapping_takes_its_defaults() -> None:
    config = build(RunConfig, {**FEWEST, "align": None, "finetune": {}, "teacher": {"limits": {}}}, "x")
    assert config.align is None
    assert config.finetune == FinetuneConfig()
    assert config.teacher.limits == DistillConfig()
    assert config.transfer is None


@given(mappings, mappings)
def test_merging_keeps_what_is_not_changed(base: dict, changes: dict) -> None:
    before = str(base), str(changes)
    found = merged(base, changes)
    assert (str(base), str(changes)) == before
    assert found.keys() == base.keys() | changes.keys()
    for name, value in found.items():
        if name not in changes:
            assert value == base[name]
        elif not isinstance(changes[name], dict):
            assert value == changes[name]
        elif isinstance(base.get(name), dict):
            assert value == merged(base[name], changes[name])
    assert merged(found, changes) == found
    assert merged(base, {}) == base


# --- --set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("name=mine", {"name": "mine"}),
        ("fit.epochs=3", {"fit": {"epochs": 3}}),
        ("fit.losses.plcc=0.5", {"fit": {"losses": {"plcc": 0.5}}}),
        ("seeds=[1, 2]", {"seeds": [1, 2]}),
        ("finetune=null", {"finetune": None}),
        ("start=", {"start": None}),
        ("align={}", {"align": {}}),
        ("made_up=true", {"made_up": True}),
        ("data.path=/a=b.csv", {"data": {"path": "/a=b.csv"}}),
        ("learned_from='{count} images: mine'", {"learned_from": "{count} images: mine"}),
    ],
)
def test_set_takes_dotted_names_and_yaml_values(change: str, found: dict) -> None:
    assert _changed({}, [change]) == found


def test_set_changes_only_what_it_names_and_the_last_one_counts() -> None:
    settings = {"fit": {"epochs": 3, "lr": 0.1}, "name": "own"}
    changed = _changed(settings, ["fit.epochs=5", "fit.epochs=7", "seed=1"])
    assert changed == {"fit": {"epochs": 7, "lr": 0.1}, "name": "own", "seed": 1}
    assert settings == {"fit": {"epochs": 3, "lr": 0.1}, "name": "own"}


@pytest.mark.parametrize(("change", "sentence"), [("fit.epochs", "NAME=VALUE"), ("seeds=[1", "is not YAML")])
def test_set_names_what_it_cannot_read(change: str, sentence: str) -> None:
    with pytest.raises(InputError, match=rf"--set .*{sentence}"):
        _changed({}, [change])
