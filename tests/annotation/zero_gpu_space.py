"""A ZeroGPU Space on a machine without a GPU, as a script: what comes of assessments there, as JSON.

The `spaces` package is the real one: it forks, pickles and streams as on Hugging Face. Its server is one of
this script, and what would be moved to the GPU stays in memory.

    zero_gpu_space.py WORK_FOLDER
"""

import json
import os
import sys
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "m3agiqa")]

WORK = Path(sys.argv[1])
PATIENCE = 30.0  # seconds


class ZeroGPU(BaseHTTPRequestHandler):
    """The server that lends GPUs; `mood` says how."""

    calls: ClassVar[list[tuple[str, dict[str, list[str]]]]] = []
    mood = "lends"
    go_on = threading.Event()

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        self.calls.append((url.path, parse_qs(url.query)))
        if url.path != "/schedule":
            self._answer(200, {})
        elif self.mood == "quota":
            self._answer(429, {"left": 7, "wait": "PT3H"})
        elif self.mood == "broken":
            self._answer(500, {})
        else:
            if self.mood == "busy":
                self.go_on.wait(PATIENCE)
            self._answer(200, {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "gpu", "allowToken": "token"})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), ZeroGPU)
threading.Thread(target=server.serve_forever, daemon=True).start()
(WORK / "cgroup").write_text("0::/space\n")
os.environ |= {
    "SPACES_ZERO_GPU": "true",
    "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
    "ZEROGPU_PROC_SELF_CGROUP_PATH": str(WORK / "cgroup"),
    "GRADIO_ANALYTICS_ENABLED": "False",
}
if torch.version.cuda is None:  # what `spaces` looks up in torch, and a build for the CPU does not have
    torch.version.cuda = "13.0"
    torch._C._cuda_init = lambda: None
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    torch.cuda._is_in_bad_fork = torch.cuda.is_initialized

import gradio as gr  # noqa: E402
import spaces  # noqa: E402
from gradio.context import LocalContext  # noqa: E402
from PIL import Image  # noqa: E402
from spaces.zero.torch import patching  # noqa: E402
from starlette.datastructures import Headers  # noqa: E402
from tiny_minicpm import write_base  # noqa: E402

from annotation.settings import Settings  # noqa: E402
from annotation.ui import zero_gpu  # noqa: E402
from annotation.ui.assess.runs import Runs  # noqa: E402
from annotation.ui.images import Upload  # noqa: E402
from annotation.ui.model_service import (  # noqa: E402
    ModelLoader,
    WaitingLine,
    from_registry,
)
from m3agiqa import Aspect, Assessor, DescriptionDelta, M3AgiqaError, MosScale, Rating  # noqa: E402
from m3agiqa.assessment import Event  # noqa: E402
from m3agiqa.backbones.base import Delta, Generation, Request  # noqa: E402
from m3agiqa.backbones.minicpm import backbone as minicpm  # noqa: E402
from m3agiqa.backbones.minicpm.base_weights import FOLDER_VARIABLE  # noqa: E402
from m3agiqa.checkpoint.card import Card, write_card  # noqa: E402
from m3agiqa.checkpoint.predictor_weights import save_predictor  # noqa: E402
from m3agiqa.predictor.config import PredictorConfig  # noqa: E402
from m3agiqa.predictor.model import Prediction, Predictor  # noqa: E402


def move_to_gpu(callback: object = None) -> None:
    for stands_for, weights in patching.cuda_aliases.items():
        stands_for.data = weights


spaces.zero.torch.init = lambda uuid: None
spaces.zero.torch.move = move_to_gpu
spaces.zero.torch.pack = lambda: 0


class ScriptedBackbone:
    """Says the number of its process, then does what its image is called."""

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        told = (WORK / "told").read_text()
        yield Delta(0, f"{os.getpid()}")
        if told == "fail":
            raise ZeroDivisionError("secret detail")
        if told == "die":
            os._exit(1)
        try:
            while told == "wait" and not (WORK / "heard").exists():
                time.sleep(0.01)
            while told == "go on":
                time.sleep(0.01)
                yield Delta(0, " and")
        except GeneratorExit:
            (WORK / "closed").touch()
            raise
        yield Generation(0, f"{os.getpid()}", Rating.GOOD, torch.zeros(2, 4))


class FixedPredictor:
    def predict_all(self, conversations: list[torch.Tensor]) -> list[Prediction]:
        return [Prediction(4.5, torch.zeros(2)) for _ in conversations]


def scripted(backbone: str = "scripted") -> Assessor:
    quality = Aspect.QUALITY
    card = Card("scripted", "1", backbone, "nobody", "0", {quality: MosScale(1, 5)}, {})
    return Assessor(ScriptedBackbone(), {quality: FixedPredictor()}, card)


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def failure(work: Callable[[], object]) -> list[str]:
    """Class and message of what was raised."""
    try:
        return ["nothing", repr(work())]
    except M3AgiqaError as error:
        return [type(error).__name__, str(error)]


def paths() -> list[str]:
    return [path for path, _ in ZeroGPU.calls]


def tell(what: str) -> None:
    (WORK / "told").write_text(what)


def plain(events: Iterator[Event]) -> list[list[str]]:
    """Names of the events, each with what it is about."""
    return [[type(event).__name__, str(getattr(event, "aspect", ""))] for event in events]


def tiny_checkpoint(folder: Path) -> Path:
    """A MiniCPM of two layers, with predictors that nobody has trained."""
    base = write_base(folder / "base")
    (base / "preprocessor_config.json").write_text(json.dumps({"scale_resolution": 112}))
    os.environ[FOLDER_VARIABLE] = str(base)
    minicpm.MAX_NEW_TOKENS = 8
    made = folder / "checkpoint"
    made.mkdir()
    shape = PredictorConfig(64, extractor="gru", dim=16, blocks=1, regression_dim=4)
    for aspect in Aspect:
        save_predictor(Predictor(shape), made, aspect)
    scales, shapes = dict.fromkeys(Aspect, MosScale(1, 5)), dict.fromkeys(Aspect, shape)
    write_card(Card("tiny", "1", "minicpm", "nobody", "0", scales, shapes), made)
    return made


IMAGE = WORK / "image.png"
Image.new("RGB", (64, 64), "teal").save(IMAGE)
found: dict[str, object] = {}

with gr.Blocks() as page:
    gr.HTML()
page.launch(prevent_thread_lock=True, quiet=True)
found["at launch"] = paths()

tell("judge")
nano = scripted("nano")
lent = zero_gpu.on_demand(scripted())
found["nano stays"] = zero_gpu.on_demand(nano) is nano
found["cpu stays"] = zero_gpu.on_demand(nano, "cpu") is nano
found["nano"] = plain(nano.stream(IMAGE))
found["scheduled for nano"] = paths().count("/schedule")
found["events"] = plain(lent.stream(IMAGE))
(_, schedule), *_ = [call for call in ZeroGPU.calls if call[0] == "/schedule"]
found["seconds asked for"] = schedule["durationSeconds"]
assessment = lent.assess(IMAGE, None, [Aspect.QUALITY])
found["elsewhere"] = assessment.aspects[Aspect.QUALITY].description != str(os.getpid())
found["released"] = until(lambda: paths().count("/release") == 2)

tell("wait")
events = lent.stream(IMAGE)
found["first"] = isinstance(next(events), DescriptionDelta)  # while the other process waits for this one
(WORK / "heard").touch()
found["rest"] = plain(events)

tell("go on")
heard: list[Event] = []
found["stopped"] = failure(
    lambda: [heard.append(event) for event in lent.stream(IMAGE, stop=lambda: len(heard) > 3)]
)
found["closed"] = until((WORK / "closed").exists)
(WORK / "closed").unlink()
events = lent.stream(IMAGE)
next(events)
events.close()  # as whoever leaves the loop does
found["closed by leaving"] = until((WORK / "closed").exists)

found["no image"] = failure(lambda: lent.assess(WORK / "told"))
tell("fail")
found["bug"] = failure(lambda: lent.assess(IMAGE))
tell("die")
found["taken away"] = failure(lambda: lent.assess(IMAGE))

tell("judge")
ZeroGPU.mood = "busy"
began = time.monotonic()
found["stopped while waiting"] = failure(
    lambda: list(lent.stream(IMAGE, stop=lambda: time.monotonic() > began + 0.2))
)
ZeroGPU.go_on.set()


def as_visitor() -> object:
    """A page's run, begun during a request that Hugging Face has signed for its visitor."""
    payload = urlsafe_b64encode(b'{"user": "ann"}').decode().rstrip("=")
    headers = Headers({"x-ip-token": f"head.{payload}.signature", "x-gradio-user": "app"})
    LocalContext.request.set(SimpleNamespace(headers=headers))
    runs = Runs(ModelLoader("lent", lambda name, progress: lent), WaitingLine())
    run = runs.begin("ann", Upload(IMAGE, "image.png"), "")
    until(lambda: run.state.over)
    return run.state


ZeroGPU.mood = "quota"
state = copy_context().run(as_visitor)
found["quota"] = [state.stage, state.error]
*_, (_, schedule) = [call for call in ZeroGPU.calls if call[0] == "/schedule"]
found["visitor"] = schedule["token"][0].partition(".")[0]
ZeroGPU.mood = "broken"
found["no answer"] = failure(lambda: lent.assess(IMAGE))
ZeroGPU.mood = "lends"

checkpoint = tiny_checkpoint(WORK / "tiny")
settings = Settings(data=WORK, model=str(checkpoint))
loader = ModelLoader(settings.model, from_registry(settings))
tiny = loader.wait(lambda: False, lambda load: None)
with zero_gpu.loading():
    found["device"] = str(tiny.backbone.model.llm.lm_head.weight.device)
found["tiny"] = tiny.assess(IMAGE, "a ball").to_dict()["aspects"]
loader.switch(settings.model)  # loaded after the first process was forked
found["switched"] = loader.state.assessor.assess(IMAGE, "a ball").to_dict()["aspects"]
on_cpu = from_registry(replace(settings, device="cpu"))(settings.model, lambda message, fraction: None)
found["on the CPU"] = on_cpu.assess(IMAGE, "a ball").to_dict()["aspects"]

found["several"] = [type(each).__name__ for each in lent.assess_all([(IMAGE, None), (b"no image", None)])]
(WORK / "found.json").write_text(json.dumps(found))
page.close()
