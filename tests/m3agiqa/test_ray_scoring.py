"""On a real Ray cluster of this machine, with workers that are processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageStat
from test_batch_scoring import records, run

from m3agiqa import Aspect, AspectResult, Assessment, InputError, Rating, batch_scoring
from m3agiqa.aspects import COMMON_SCALE
from m3agiqa.images import open_image
from m3agiqa.ray_scoring import PartScorer, cluster, score_on_ray
from m3agiqa.score_inputs import read_rows
from m3agiqa.score_parts import PartedScores

IMAGES = 5
UNREADABLE = 3
PART_SIZE = 2
BATCH_SIZE = 1


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two cores, which all tests share."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-scale.txt")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, object_store_memory=128 * 2**20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Small images of other colours, and in the middle one that cannot be read."""
    gradient = Image.linear_gradient("L").resize((48, 48))
    lines = ["image,prompt"]
    for number in range(IMAGES):
        lines.append(f"{number}.png,a striped sheet numbered {number}")
        if number != UNREADABLE:
            Image.merge("RGB", [gradient, gradient.rotate(number * 9), gradient.rotate(90)]).save(
                tmp_path / f"{number}.png"
            )
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines))
    return path


class PixelAssessor:
    """Judges an image by its mean pixel, so that workers start quickly; benchmarks/scale.py has nano."""

    card = SimpleNamespace(title="pixels 1", learned_from="nobody")

    def assess_all(self, subjects: Sequence[tuple[str, str | None]]) -> list[Assessment]:
        return [self._assessment(open_image(image), prompt) for image, prompt in subjects]

    def _assessment(self, image: Image.Image, prompt: str | None) -> Assessment:
        mos = 1 + ImageStat.Stat(image.convert("L")).mean[0] / 64
        results = {
            aspect: AspectResult(aspect, f"Grey {mos} of {prompt}.", Rating.FAIR, mos, mos, COMMON_SCALE)
            for aspect in Aspect
        }
        return Assessment(None, prompt, results, self.card.title, self.card.learned_from, 0.0)


def dies_in_the_second_batch(folder: Path) -> PixelAssessor:
    """The first worker that begins a second batch is killed there."""
    batch_scoring.BATCH_SIZE = BATCH_SIZE
    assessor = PixelAssessor()
    assess_all, batches = assessor.assess_all, []

    def assess(subjects: Sequence[Any]) -> list[Any]:
        batches.append(subjects)
        if len(batches) == 2:
            try:
                (folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return assess_all(subjects)

    assessor.assess_all = assess
    return assessor


def stand_in(title: str) -> Any:
    """An assessor that judges nothing."""
    card = SimpleNamespace(title=title, learned_from="nobody")
    return SimpleNamespace(card=card, assess_all=lambda subjects: [InputError("Not judged.")] * len(subjects))


def refuse() -> Any:
    raise InputError("There is no model of this name")


def on_ray(
    table: Path,
    out: Path,
    load: Callable[[], Any],
    suffix: str = ".csv",
    workers: int = 1,
    retry: bool = False,
) -> tuple[int, int]:
    shown: list[tuple[int, int]] = []
    output = PartedScores(out, suffix, PART_SIZE, retry)
    counts = score_on_ray(read_rows(table), output, load, lambda *n: shown.append(n), workers=workers)
    assert shown[-1][0] == shown[-1][1]
    return counts


def test_addresses_where_no_ray_answers() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-scale.txt")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        check_refused(f"127.0.0.1:{port}", "what answers there is not Ray")
        thread.join()
    check_refused(f"127.0.0.1:{port}", "Connection refused")
    check_refused("nowhere.invalid:6379", "")
    check_refused("10.0.0.5", "it is no host:port")


def check_refused(address: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"No Ray cluster answers at {address}: {reason}.*ray start --head"):
        cluster(address).__enter__()


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'needs Ray .*: pip install "m3agiqa\[scale\]"'):
        cluster(None).__enter__()


def test_a_worker_is_killed_and_nothing_is_lost(ray: Any, table: Path, tmp_path: Path) -> None:
    """The same rows with the same scores as in one process, in parts of Parquet."""
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "parts"
    load = partial(dies_in_the_second_batch, tmp_path)
    assert on_ray(table, out, load, ".parquet", workers=2) == (IMAGES - 1, 1)
    assert (tmp_path / "killed").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        ".made_from.json",
        *(f"part-00000{number}.parquet" for number in range(3)),
    ]
    parts = parquet.read_table(out).to_pylist()
    run(table, tmp_path / "out.csv", PixelAssessor())
    alone = records(tmp_path / "out.csv")
    assert [as_texts(row) for row in parts] == alone
    assert "There is no file" in parts[UNREADABLE]["error"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_parts_of_failed_or_other_rows_are_scored_again_if_asked_for(
    table: Path, tmp_path: Path, suffix: str
) -> None:
    """What a run on Ray does, in this process."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")

    def scored(retry: bool) -> list[int]:
        """The numbers of the parts that were to be scored."""
        output = PartedScores(tmp_path / "parts", suffix, PART_SIZE, retry)
        scorer = PartScorer(PixelAssessor, output, "", SimpleNamespace(put=lambda progress: None))
        with output.locked(read_rows(table)) as parts:
            numbers = output.unfinished(len(parts))
            for number in numbers:
                scorer({"part": np.array([number]), "offset": np.array([parts[number][0]])})
        return numbers

    assert scored(retry=False) == [0, 1, 2]
    with PartedScores(tmp_path / "parts", suffix, PART_SIZE, retry=True).locked(read_rows(table)):
        pass  # interrupted
    assert (tmp_path / "parts" / f"part-00000{UNREADABLE // PART_SIZE}{suffix}").exists(), (
        "it stays until then"
    )
    made_from = tmp_path / "parts" / ".made_from.json"
    facts = json.loads(made_from.read_text())
    made_from.write_text(json.dumps({name: facts[name] for name in ("sha256", "part_size", "format")}))
    Image.new("RGB", (48, 48)).save(tmp_path / f"{UNREADABLE}.png")
    assert scored(retry=False) == [], "a failed row counts as done; the folder is one of version 0.4.2"
    assert scored(retry=True) == [UNREADABLE // PART_SIZE]
    assert scored(retry=True) == []
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], "0.png,another prompt"]))
    with pytest.raises(InputError, match=r"begun with other rows.*with --retry"):
        scored(retry=False)
    assert scored(retry=True) == [1]
    assert sorted(path.stem for path in (tmp_path / "parts").glob("part-*")) == ["part-000000", "part-000001"]
    assert scored(retry=False) == []


ON_A_CLUSTER = """
import sys, ray, test_ray_scoring
from test_ray_scoring import PixelAssessor
from m3agiqa import Assessor, cli
ray.cloudpickle.register_pickle_by_value(test_ray_scoring)
Assessor.from_pretrained = lambda *_, **options: PixelAssessor()
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command in a process that has no cluster of its own, with a model that loads quickly."""


def test_the_command_works_on_a_cluster_that_is_there(ray: Any, table: Path, tmp_path: Path) -> None:
    address, out = ray.get_runtime_context().gcs_address, tmp_path / "parts"
    command = ["score", table, "--out", out, "--format", "csv", "--engine", "ray", "--address", address]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, *command], capture_output=True, text=True, env=environment
    )
    assert done.stdout == f"scored {IMAGES - 1}, failed 1 (see the error column)\n", done.stderr
    run(table, tmp_path / "out.csv", PixelAssessor())
    assert records(out / "part-000000.csv") == records(tmp_path / "out.csv")


def as_texts(row: dict[str, Any]) -> dict[str, str]:
    texts = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in row.items()}
    return {name: "" if value is None else value for name, value in texts.items()}


def test_it_goes_on_by_part_and_mixes_nothing(ray: Any, table: Path, tmp_path: Path) -> None:
    out, load = tmp_path / "parts", partial(stand_in, "stand-in 1")
    assert on_ray(table, out, load) == (0, IMAGES)
    run(table, tmp_path / "out.csv", stand_in("stand-in 1"))
    first, second, third = (out / f"part-00000{number}.csv" for number in range(3))
    before = first.read_bytes()
    assert records(first) + records(second) + records(third) == records(tmp_path / "out.csv")
    second.unlink()
    other = PartScorer(partial(stand_in, "stand-in 2"), PartedScores(out, ".csv"), "stand-in 1", None)
    refusal = other({"part": np.array([1]), "offset": np.array([0])})["refusal"][0]
    assert "holds scores of stand-in 1, and this model is stand-in 2" in refusal
    with pytest.raises(InputError, match=r"There is no model of this name.*Finished parts are kept"):
        on_ray(table, out, refuse)
    assert not second.exists()
    assert on_ray(table, out, load) == (0, PART_SIZE)
    assert first.read_bytes() == before
    assert on_ray(table, out, load) == (0, 0)
    with table.open("a") as file:
        file.write("\n0.png,another prompt")
    with pytest.raises(InputError, match=r"begun with other rows, --part-size or --format.*with --retry"):
        on_ray(table, out, load)
    with pytest.raises(InputError, match="begun with other rows"):
        on_ray(table, out, load, suffix=".parquet", retry=True)
    with pytest.raises(InputError, match="holds other files"):
        on_ray(table, tmp_path, load)
    with PartedScores(tmp_path / "other").locked([]), pytest.raises(InputError, match="Another process"):
        on_ray(table, tmp_path / "other", load)
