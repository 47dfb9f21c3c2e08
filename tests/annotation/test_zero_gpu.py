"""Assessments on a ZeroGPU Space: in another process, on a GPU that is lent, and called as everywhere."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from annotation.ui import gpu_on_demand, zero_gpu
from m3agiqa import Aspect

SCRIPT = Path(__file__).with_name("zero_gpu_space.py")
STOPPED = ["Stopped", "Stopped on request."]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script has found: `spaces` changes torch for good, so it has a process of its own."""
    folder = tmp_path_factory.mktemp("space")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text()) | {"log": done.stdout + done.stderr}


def test_elsewhere_an_assessor_stays_what_it_is() -> None:
    assessor = object()
    with zero_gpu.loading():
        assert zero_gpu.on_demand(assessor) is assessor


def test_a_space_with_nano_starts_and_takes_no_gpu(found) -> None:
    assert found["at launch"] == ["/startup-report"], "else ZeroGPU ends the Space"
    assert found["nano stays"] and found["cpu stays"]
    assert found["scheduled for nano"] == 0


def test_the_same_events_come_from_a_process_that_has_a_gpu(found) -> None:
    assert found["events"] == found["nano"]
    assert [name for name, _ in found["events"]] == ["DescriptionDelta", "AspectResult", "Assessment"]
    assert found["several"] == ["Assessment", "InputError"]
    assert found["elsewhere"] and found["released"]
    assert found["seconds asked for"] == ["30"], "two aspects of a small image: there is no prompt"


@pytest.mark.parametrize(
    ("size", "prompt", "aspects", "seconds"),
    [
        ((64, 64), None, [Aspect.QUALITY], 6 + 12),
        ((64, 64), "a ball", None, 6 + 3 * 12),
        ((1024, 1024), "a ball", None, 6 + 3 * (11 + 7)),  # an overview and six slices
        ((3000, 3000), "a ball", None, 6 + 3 * (11 + 10)),  # nine slices at most
        (None, "a ball", [Aspect.CORRESPONDENCE], 6 + 12),
        (None, "a ball", "quality", 6 + 12),
    ],
)
def test_the_seconds_asked_for_follow_the_work(
    size: tuple[int, int] | None, prompt: str | None, aspects: Sequence[str] | None, seconds: int
) -> None:
    image = Image.new("L", size) if size else b"no image"
    assert gpu_on_demand.requested_duration(image, prompt, aspects) == seconds


def test_events_come_while_the_model_is_still_speaking(found) -> None:
    assert found["first"]
    assert [name for name, _ in found["rest"]] == ["AspectResult", "Assessment"]


def test_stop_ends_the_work_in_the_other_process(found) -> None:
    assert found["stopped"] == STOPPED
    assert found["closed"] and found["closed by leaving"]


def test_stop_ends_the_wait_for_a_gpu(found) -> None:
    assert found["stopped while waiting"] == STOPPED


def test_what_goes_wrong_there_is_a_sentence_here(found) -> None:
    kind, sentence = found["no image"]
    assert (kind, sentence[:20]) == ("InputError", "This is not an image"), sentence
    assert found["bug"] == [
        "GpuError",
        "The model failed on the GPU (ZeroDivisionError); the app's log says more.",
    ]
    assert "secret detail" in found["log"]
    kind, sentence = found["taken away"]
    assert kind == "GpuError" and sentence.startswith(
        "ZeroGPU took its GPU away before the assessment had ended"
    )
    kind, sentence = found["no answer"]
    assert kind == "GpuError" and sentence.startswith("ZeroGPU does not answer; try again in a minute.")


def test_the_gpus_time_is_the_visitors_who_hear_when_theirs_is_used_up(found) -> None:
    assert found["visitor"] == "head", "the token of the request that began the run"
    stage, sentence = found["quota"]
    assert stage == "failed"
    assert sentence.startswith(
        "ZeroGPU quota exceeded: You have exceeded your ZeroGPU quota (30s requested vs. 7s"
    )


def test_a_model_loaded_for_the_gpu_judges_as_on_the_cpu(found) -> None:
    assert found["device"] == "cuda:0"
    assert found["tiny"] == found["on the CPU"] == found["switched"]
    assert set(found["tiny"]) == {"quality", "correspondence", "authenticity"}
