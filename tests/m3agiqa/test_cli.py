"""The command line, in this process with a scripted model, and once for real."""

import csv
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from tqdm import std

from m3agiqa import Aspect, Assessor, DescriptionDelta, cli
from m3agiqa.checkpoint.card import SHIPPED_FOLDER
from m3agiqa.quality_map import QualityMap, even_parts

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def loaded(scripted: Assessor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were asked for; each is the scripted one."""
    names: list[str] = []

    def from_pretrained(name: str, progress: object, **options: object) -> Assessor:
        names.append(name)
        return scripted

    monkeypatch.setattr(Assessor, "from_pretrained", from_pretrained)
    monkeypatch.delenv("M3AGIQA_MODEL", raising=False)
    return names


def generated(path: Path, picture: Image.Image, prompt: str) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{prompt}\nSteps: 20, Sampler: Euler")
    picture.save(path, pnginfo=info)
    return path


# --- serve ---------------------------------------------------------------------------------------


def test_serve_hands_its_options_to_the_installed_app(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = EntryPoint("serve", "runpy:run_path", "m3agiqa.app")  # any function that is there, never called
    served: list[str | None] = []
    names = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "M3AGIQA_DATA")
    monkeypatch.setattr(EntryPoint, "load", lambda _: lambda: served.extend(map(os.environ.get, names)))
    monkeypatch.setattr(cli, "entry_points", lambda **wanted: EntryPoints([app]).select(**wanted))
    for name in names:
        monkeypatch.setenv(name, "")
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "8000", "--data", str(tmp_path)]) == 0
    assert served == ["0.0.0.0", "8000", str(tmp_path)]


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_serve_names_a_wrong_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", f"--port={port}"])
    assert f"{port!r} is no number from 1 to 65535" in capsys.readouterr().err


def test_serve_without_an_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda **_: EntryPoints())
    assert cli.main(["serve"]) == 2
    assert "python app.py" in capsys.readouterr().err


# --- assess --------------------------------------------------------------------------------------


def test_json_is_all_of_stdout(image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["assess", str(image_file), "--prompt", "a ball", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert {"image", "prompt", "aspects", "model", "seconds"} <= set(told)
    assert (told["image"], told["prompt"], told["model"]) == (str(image_file), "a ball", "scripted 1.2")
    assert list(told["aspects"]) == ["quality", "correspondence", "authenticity"]
    for judged in told["aspects"].values():
        assert {"description", "rating", "mos", "scale"} <= set(judged)
        assert judged["scale"] == [1, 5]
    assert err == ""


def test_where_it_looks_bad(image_file: Path, scripted: Assessor, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {Aspect.QUALITY: [0.5, 0.25, 0.5, -1.5]}
    scripted.backbone.quality_map = lambda image, report, stop: QualityMap.of(
        image.size, even_parts(image.size, (2, 2)), scores, "By hand.", 1.0
    )
    assert cli.main(["assess", str(image_file), "--map", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["map"]
    assert told["method"] == "By hand."
    assert [part["quality"] for part in told["parts"]] == [0.125, -0.125, 0.125, -1.875]
    assert told["worst"]["quality"] == told["parts"][3]["box"]
    assert cli.main(["assess", str(image_file), "--map"]) == 0
    assert "Quality is worst at the lower right (-1.88 beside the median part)." in capsys.readouterr().out


def test_json_is_json_in_a_narrow_terminal(image_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii", write_through=True))
    assert cli.main(["assess", str(image_file), "--prompt", "a café 🦊", "--json"]) == 0
    assert json.loads(out.getvalue())["prompt"] == "a café 🦊"


def test_descriptions_and_table(image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["assess", str(image_file), "--prompt", "a ball"]) == 0
    out = capsys.readouterr().out
    assert out.count("It has a calm, even light, and the ball is round.") == 3
    assert "\x1b" not in out  # not a terminal
    table = out[out.index("Aspect") :].splitlines()
    assert [line.split() for line in table[1:4]] == [
        ["Quality", "good", "3.62", "of", "1–5"],
        ["Correspondence", "excellent", "5.00", "of", "1–5", "(raw", "5.31)"],
        ["Authenticity", "bad", "1.00", "of", "1–5", "(raw", "0.20)"],
    ]
    assert re.fullmatch(r"Judged by scripted 1\.2 in \d+\.\d s\. Learned from nobody\.", table[-1])


def test_the_table_says_what_a_score_means(
    image_file: Path,
    calibrated: Assessor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Assessor, "from_pretrained", lambda *_, **__: calibrated)
    assert cli.main(["assess", str(image_file), "--prompt", "灯台"]) == 0
    out = capsys.readouterr().out
    assert "3.62 of 1–5, likely 3.12–4.12, better than 81 % of 3,827 images\n" in out
    assert "5.00 of 1–5 (raw 5.31), likely 4.50–5.00, words of the prompt unknown\n" in out
    assert "Likely: 80 % of mean opinion scores" in out


def test_chosen_aspects(image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["assess", str(image_file), "--aspect", "authenticity", "--aspect", "quality", "--json"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["aspects"]) == ["authenticity", "quality"]
    assert err == ""


def test_without_prompt_says_what_is_left_out(image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["assess", str(image_file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["aspects"]) == ["quality", "authenticity"]
    assert "There is no prompt, so correspondence is left out" in err


def test_prompt_from_the_file(
    tmp_path: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    path = generated(tmp_path / "a.png", picture, "a ball\x1b]0;evil\x07")
    assert cli.main(["assess", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["aspects"]) == ["quality", "correspondence", "authenticity"]
    assert err.startswith("Prompt read from the image file, A1111 parameters (PNG text): a ball")
    assert "\x1b" not in err

    assert cli.main(["assess", str(path), "--prompt", "a cube", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["prompt"], err) == ("a cube", "")

    assert cli.main(["assess", str(path), "--prompt", "", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] is None


def test_model_choice(image_file: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["assess", str(image_file), "--json"]
    cli.main(command)
    monkeypatch.setenv("M3AGIQA_MODEL", "from-environment")
    cli.main(command)
    cli.main([*command, "--model", "chosen"])
    assert loaded == ["nano", "from-environment", "chosen"]


# --- bad input -----------------------------------------------------------------------------------


@pytest.fixture
def bad_files(tmp_path: Path, picture: Image.Image) -> Path:
    (tmp_path / "letter.png").write_text("Dear all")
    picture.save(tmp_path / "whole.png")
    picture.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:500])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    return tmp_path


BAD_INPUT = {
    "missing": (["gone.png"], "There is no file"),
    "folder": (["."], "is a folder"),
    "no image": (["letter.png"], "not an image that can be read"),
    "truncated": (["cut.jpg"], "damaged or cut off"),
    "1 × 1": (["dot.png"], "at least 32 × 32"),
    "no prompt": (["whole.png", "--aspect", "correspondence"], "no prompt was given"),
}


@pytest.mark.parametrize("json_only", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("arguments, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence_and_code_2(
    bad_files: Path,
    arguments: list[str],
    message: str,
    json_only: list[str],
    loaded: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *options = arguments
    assert cli.main(["assess", str(bad_files / name), *options, *json_only]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert loaded == []  # nobody waits for the model to learn this


@pytest.mark.parametrize(
    "arguments", [[], ["assess"], ["assess", "a.png", "--aspect", "beauty"], ["score", "folder"], ["judge"]]
)
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_tampered_and_unknown_models(
    image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    shutil.copytree(SHIPPED_FOLDER / "nano", tmp_path / "copy")
    with (tmp_path / "copy" / "connector.safetensors").open("ab") as file:
        file.write(b"\0")
    assert cli.main(["assess", str(image_file), "--json", "--model", str(tmp_path / "copy")]) == 2
    assert re.search(r"connector\.safetensors is damaged or has been changed", capsys.readouterr().err)
    assert cli.main(["assess", str(image_file), "--json", "--model", "huge"]) == 2
    assert "There is no model 'huge'" in capsys.readouterr().err


def test_interrupt_is_code_130(
    image_file: Path, scripted: Assessor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scripted.backbone, "describe", interrupt)
    assert cli.main(["assess", str(image_file), "--json"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("Interrupted.\n")


# --- score ---------------------------------------------------------------------------------------


def test_score(bad_files: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out_file = bad_files / "scores.csv"
    command = ["score", str(bad_files), "--out", str(out_file)]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out == "scored 1, failed 3 (see the error column)\n"
    assert "4/4" in err  # the progress bar
    with out_file.open(encoding="utf-8-sig", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [
            "cut.jpg",
            "dot.png",
            "letter.png",
            "whole.png",
        ]
    loaded.clear()
    assert cli.main(command) == 0
    assert loaded == []
    out, err = capsys.readouterr()
    assert out == "scored 0, failed 0\n"
    assert "4 of 4 rows are in" in err


def test_a_long_prompt_is_judged_alike_wherever_it_comes_from(
    tmp_path: Path, picture: Image.Image, scripted: Assessor, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.backbone.fits = lambda prompt: len(prompt) <= 1000
    prompt = "word " * 599 + "words"
    image = generated(tmp_path / "a.png", picture, prompt)
    judged = []
    for given in ([], ["--prompt", prompt]):
        assert cli.main(["assess", str(image), "--json", *given]) == 0
        result = json.loads(capsys.readouterr().out)
        correspondence = result["aspects"]["correspondence"]
        assert correspondence["read_characters"] == 999
        judged.append((result["prompt"], f"{correspondence['mos']:.3f}"))
    table = tmp_path / "table.csv"
    table.write_text(f"image,prompt\na.png,{prompt}\n")
    for source, name in ((table, "of table.csv"), (tmp_path, "of folder.csv")):
        out = tmp_path / name
        assert cli.main(["score", str(source), "--out", str(out)]) == 0
        with out.open(encoding="utf-8-sig", newline="") as file:
            (row,) = csv.DictReader(file)
        assert "999 characters" in row["prompt_origin"]
        judged.append((row["prompt"], row["correspondence_mos"]))
    assert judged == [(prompt, "5.000")] * 4


@pytest.mark.parametrize(
    "source, out, message",
    [
        ("gone.csv", "scores.csv", "There is no file or folder"),
        ("letter.png", "scores.csv", "is an image, which `assess` judges"),
        (".", "nowhere/scores.csv", "There is no folder"),
        (".", "letter.png", "not a score file"),
    ],
)
def test_score_refuses_before_loading(
    bad_files: Path,
    source: str,
    out: str,
    message: str,
    loaded: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(bad_files.iterdir())
    assert cli.main(["score", str(bad_files / source), "--out", str(bad_files / out)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(bad_files.iterdir()) == before
    assert loaded == []


def test_options_of_the_engine_ray(
    bad_files: Path, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(bad_files), "--out", str(bad_files / "scores")]
    assert cli.main([*command, "--part-size", "8"]) == 2
    assert "--part-size is for --engine ray." in capsys.readouterr().err
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-scale.txt")
    assert cli.main([*command, "--engine", "ray", "--address", "127.0.0.1:1"]) == 2
    err = capsys.readouterr().err
    assert "No Ray cluster answers at 127.0.0.1:1: Connection refused. Start one with" in err
    assert loaded == []


def test_the_rate_on_ray_begins_with_the_first_rows(
    bad_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(std, "time", lambda: now[0])

    def score_on_ray(*given: Callable[[int, int], object], **options: object) -> tuple[int, int]:
        show = given[-1]
        # Until 60 s models are loaded; then 8 rows come, and one a second from there on.
        for now[0], done in ((0.0, 10), (30.0, 10), (60.0, 18), (64.0, 22), (68.0, 26)):
            show(done, 100)
        return 16, 0

    monkeypatch.setattr(cli, "score_on_ray", score_on_ray)
    command = ["score", str(bad_files), "--engine", "ray", "--out", str(bad_files / "scores")]
    assert cli.main(command) == 0
    assert re.search(r"26/100 \[00:08<01:14, +1\.00image/s\]", capsys.readouterr().err)


# --- terminal ------------------------------------------------------------------------------------


class Terminal:
    """Enough of a terminal to see what stays on it: lines, scrolled up where they exceed its height."""

    WIDTH, HEIGHT = 40, 12

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            line = self.lines[self.row]
            if token in "\r\n":
                self.column = 0
                self.row += token == "\n"
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif token in ("\x1b[K", "\x1b[J"):
                self.lines[self.row] = line[: self.column]
                if token == "\x1b[J":
                    del self.lines[self.row + 1 :]
            elif up := re.fullmatch(r"\x1b\[(\d+)A", token):
                top = max(0, len(self.lines) - self.HEIGHT)
                self.row = max(top, self.row - int(up[1]))  # what has scrolled away is out of reach
            elif token[0] != "\x1b":
                end = self.column + len(token)
                self.lines[self.row] = line[: self.column] + token + line[end:]
                self.column = end

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("words", [3, 60])
def test_live_display_leaves_each_description_once(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(cli.sys, "stdout", terminal)
    monkeypatch.setattr(cli.shutil, "get_terminal_size", lambda **_: (Terminal.WIDTH, Terminal.HEIGHT))
    display = cli.LiveDisplay()
    with display.drawing():
        for i in range(words):
            for aspect in Aspect:
                display.add(DescriptionDelta(aspect, f"{aspect[0]}{i} "))
    assert all(len(line) < Terminal.WIDTH for line in terminal.lines)
    text = "\n".join(terminal.lines)
    for aspect in Aspect:
        assert text.count(aspect.capitalize()) == 1
        assert re.findall(rf"\b{aspect[0]}\d+", text) == [f"{aspect[0]}{i}" for i in range(words)]


# --- for real ------------------------------------------------------------------------------------


WITHOUT_COMPILERS = """
import runpy, sys
sys.modules |= {"triton": None, "ninja": None}
runpy.run_module("m3agiqa", run_name="__main__", alter_sys=True)
"""
"""What `python -m m3agiqa` does where there is no Triton, which is for Linux alone, and no ninja."""


def test_processes_with_the_shipped_model_agree_to_the_last_byte(
    tmp_path: Path, picture: Image.Image
) -> None:
    """On Intel's processors whatever their numbers of threads, which follow the load of the machine.

    One of them has no compiler at hand, as on most machines.
    """
    path = generated(tmp_path / "a.png", picture, "a red ball")

    def start(*python: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *python, "assess", str(path), "--json"]
        pipe, environment = subprocess.PIPE, os.environ | environment
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, env=environment)

    processes = [
        start("-m", "m3agiqa", OMP_NUM_THREADS="1"),
        # Threads that spin while they wait would take most of the time beside other work.
        start("-m", "m3agiqa", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive"),
        start("-c", WITHOUT_COMPILERS, OMP_NUM_THREADS="1", PATH=str(tmp_path)),
    ]
    outputs, notes = zip(*(process.communicate() for process in processes), strict=True)
    read_from = b"Prompt read from the image file, A1111 parameters (PNG text): a red ball\n"
    assert notes == (read_from,) * 3
    told = json.loads(outputs[0])
    assert told["prompt"] == "a red ball" and told["aspects"].keys() == set(Aspect)
    one, two, without_compilers = (re.sub(rb'"seconds": [\d.]+', b"", output) for output in outputs)
    assert one == without_compilers
    if "MKL_CBWR" in os.environ:  # m3agiqa.threads has found such a processor
        assert one == two
    for aspect, other in json.loads(outputs[1])["aspects"].items():
        result = told["aspects"][aspect]
        assert other["description"] and (other["description"], other["rating"]) == (
            result["description"],
            result["rating"],
        )
        assert other["mos"] == pytest.approx(result["mos"], abs=0.005)


def test_module_with_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["m3agiqa", "assess", str(tmp_path / "gone.png"), "--prompt", "x"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("m3agiqa", run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"There is no file {tmp_path / 'gone.png'}.\n")
