"""`score` on a Ray cluster: each worker holds a model and scores parts of the rows, one after another.

The rows are written to a file in the output folder first, so that no machine holds more than a part of them.
Ray Data hands the parts to a pool of actors; what an actor has not finished when it dies is done again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from m3agiqa.batch_scoring import BATCH_SIZE, ScoreFile, score
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import atomic_path
from m3agiqa.score_inputs import ScoreRow
from m3agiqa.score_parts import PARTS_ARE_KEPT, ParquetPart, PartedScores

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor

MEMORY_PER_WORKER = 2e9  # bytes, by default, of a worker without a GPU; nano needs about 1.3e9
OBJECT_STORE_BYTES = 256 * 2**20  # of a cluster that is started here; only numbers of parts pass through it
MAX_PART_RETRIES = 3  # after a worker has died
CONNECT_SECONDS = 5
PROGRESS_SECONDS = 1
HTTP2_SETTINGS = b"\x04"  # the type of the first frame that each side sends; Ray speaks gRPC, and so HTTP/2
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)


class PartScorer:
    """An actor: holds a model, and scores one part after another."""

    def __init__(self, load: Callable[[], Assessor], output: PartedScores, model: str, progress: Any) -> None:
        self.load, self.output, self.model, self.progress = load, output, model, progress
        self.assessor: Assessor | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Number and offset of one part -> how many of its rows failed, or why it cannot be scored."""
        number, failed, refusal = int(batch["part"][0]), 0, ""
        try:
            failed = self._score(number, int(batch["offset"][0]))
        except (M3AgiqaError, OSError) as error:
            refusal = (
                f"{error} (on the machine {socket.gethostname()}, which needs all files under their paths)"
            )
        return {"failed": np.array([failed]), "refusal": np.array([refusal])}

    def _score(self, number: int, offset: int) -> int:
        self.assessor = self.assessor or self.load()
        title = self.assessor.card.title
        if self.model not in ("", title):
            raise InputError(
                f"{self.output.folder} holds scores of {self.model}, and this model is {title}. "
                "Choose another --out, or delete the folder."
            )
        done, failed, new_part = 0, 0, ScoreFile if self.output.suffix == ".csv" else ParquetPart
        with self.output.rows.open("rb") as file, atomic_path(self.output.part(number)) as path:
            file.seek(offset)
            rows = map(ScoreRow.from_json, islice(file, self.output.part_size))
            with closing(new_part(path)) as part:
                part.start(title)
                for done, error in enumerate(score(rows, part, self.assessor), 1):
                    failed += bool(error)
                    if done % BATCH_SIZE == 0:
                        self.progress.put((number, done))
        self.progress.put((number, done))
        return failed


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `host:port`, or to one that is started here. Raises InputError."""
    try:
        import ray
        import ray.data
        import ray.util.queue
    except ImportError as error:
        raise InputError(f'The engine ray needs Ray ({error}): pip install "m3agiqa[scale]".') from error
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its lines would go through the progress bar
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS")
    options = {} if address else {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        if address not in (None, "auto", "local"):
            _check_speaks_http2(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0].rstrip(".")
        raise InputError(
            f"No Ray cluster answers at {address or 'this machine'}: {reason}. Start one "
            "with `ray start --head` and give its address as host:port; without one, Ray is started here."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_speaks_http2(address: str) -> None:
    """Raises OSError or ValueError for an address where no Ray can be: `ray.init` tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        raise ValueError("it is no host:port")
    with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
        connection.sendall(HTTP2_GREETING)
        if "RAY_USE_TLS" not in os.environ and connection.recv(9)[3:4] != HTTP2_SETTINGS:
            raise OSError("what answers there is not Ray")


def score_on_ray(
    rows: Iterable[ScoreRow],
    output: PartedScores,
    load: Callable[[], Assessor],
    show: Callable[[int, int], object],
    *,
    address: str | None = None,
    workers: int | None = None,
) -> tuple[int, int]:
    """Judge the rows of all parts that are not there yet, and give how many were scored and failed.

    `load` is called by each worker; `show` is given the number of rows that are done, those of former runs
    included, and of all rows. By default there is a worker for each GPU, else for each core.
    Raises InputError.
    """
    with output.locked(rows) as parts:
        total = sum(count for _, count in parts)
        todo = [{"part": number, "offset": parts[number][0]} for number in output.unfinished(len(parts))]
        before = total - sum(parts[part["part"]][1] for part in todo)
        show(before, total)
        if not todo:
            return 0, 0
        with cluster(address) as ray:
            resources = ray.cluster_resources()
            cores, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
            by_memory = resources.get("memory", 0) // MEMORY_PER_WORKER
            workers = workers or int(gpus) or max(1, int(min(cores, by_memory)))
            progress = ray.util.queue.Queue(actor_options={"num_cpus": 0})  # (part, its rows that are done)
            model = output.model
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            context.execution_no_progress_timeout_s = -1  # a part may take hours
            results = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
                PartScorer,
                fn_constructor_args=(load, output, model, progress),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=min(workers, len(todo)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=min(1, cores / workers),
                num_gpus=min(1, gpus / workers),
                max_task_retries=MAX_PART_RETRIES,
            )
            ended, done, failed = threading.Event(), dict[int, int](), 0

            def follow() -> None:
                with suppress(ray.exceptions.RayError):  # in the end the cluster goes
                    while not ended.wait(PROGRESS_SECONDS):
                        done.update(progress.get_nowait_batch(progress.qsize()))
                        show(before + sum(done.values()), total)

            threading.Thread(target=follow, daemon=True).start()
            try:
                for result in results.iter_rows():
                    if result["refusal"]:
                        raise InputError(f"{result['refusal']}. {PARTS_ARE_KEPT}")
                    failed += result["failed"]
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise InputError(f"Ray has stopped: {reason} {PARTS_ARE_KEPT}") from error
            finally:
                ended.set()
        show(total, total)
        return total - before - failed, failed
