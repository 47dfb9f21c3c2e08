"""The command line: `assess` one image, `score` many; the `memory` that takes."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from m3agiqa.aspects import Aspect
from m3agiqa.assessor import (
    LIKELY_NOTE,
    AspectResult,
    Assessment,
    Assessor,
    DescriptionDelta,
)
from m3agiqa.backbones.placement import Quantization
from m3agiqa.batch_scoring import ScoreFile, read_rows, score
from m3agiqa.checkpoint.revisions import parse_revision
from m3agiqa.conversation import Conversation, normalized_prompt
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import M3AgiqaError
from m3agiqa.image_metadata import find_prompt
from m3agiqa.images import open_image


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 130 interrupted."""
    args = _parser().parse_args(argv)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell developers, not users
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a narrow terminal encoding is no reason to fail
    try:
        args.command(args)
    except M3AgiqaError as error:
        _note(str(error))
        return 2
    except KeyboardInterrupt:
        _note(args.interrupted)
        return 130
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m3agiqa",
        description="Judges AI-generated images the way people do: quality, correspondence, authenticity.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model",
        default=os.environ.get("M3AGIQA_MODEL") or "nano",
        help="nano, m3-agiqa (the paper's), organisation/name of a model on the Hugging Face Hub, or a "
        "checkpoint folder (default: $M3AGIQA_MODEL, else nano)",
    )
    model.add_argument(
        "--revision",
        action="append",
        metavar="[REPOSITORY=]REVISION",
        help="branch, tag or commit of a model on the Hub; of each repository (repeat it) where a model is "
        "made of several (default: $M3AGIQA_REVISION, else the newest)",
    )
    model.add_argument(
        "--quantize",
        choices=get_args(Quantization),
        default=os.environ.get("M3AGIQA_QUANTIZE") or None,
        help="load the language model in fewer bits, in less memory (default: $M3AGIQA_QUANTIZE)",
    )
    model.add_argument(
        "--device",
        metavar="cpu|cuda|cuda:N|auto",
        default=os.environ.get("M3AGIQA_DEVICE") or None,
        help="where to load it; auto: over all GPUs and then the CPU's memory (default: $M3AGIQA_DEVICE, "
        "else the GPU if there is one)",
    )

    assess = commands.add_parser("assess", parents=[model], help="judge one image")
    assess.add_argument("image", metavar="IMAGE")
    assess.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the image was generated from; by default what the generator wrote into the file",
    )
    assess.add_argument(
        "--aspect",
        action="append",
        type=str.lower,
        choices=[str(aspect) for aspect in Aspect],
        help="judge only this aspect; may be repeated",
    )
    assess.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    assess.set_defaults(command=_assess, interrupted="Interrupted.")

    batch = commands.add_parser(
        "score",
        parents=[model],
        help="judge many images into a CSV",
        description="Judge many images into a CSV. The same command again goes on where it was stopped: "
        "rows that are in OUT.csv already, failed ones included, are not judged anew.",
    )
    batch.add_argument(
        "source",
        metavar="CSV|FOLDER",
        type=Path,
        help="a CSV with the columns image,prompt, or a folder of images with prompts in .txt files of the "
        "same name or in the images",
    )
    batch.add_argument("--out", metavar="OUT.csv", type=Path, required=True)
    batch.add_argument(
        "--image-root",
        metavar="DIR",
        type=Path,
        help="folder that relative paths in the CSV start from (default: the CSV's own)",
    )
    batch.set_defaults(command=_score, interrupted="Interrupted. The same command goes on from here.")

    memory = commands.add_parser("memory", help="how much memory the paper's model needs, by setting")
    memory.set_defaults(command=_memory, interrupted="Interrupted.")
    return parser


# --- assess ------------------------------------------------------------------------------------


def _assess(args: argparse.Namespace) -> None:
    # All of the input is checked first: loading the model takes seconds, the first time minutes.
    open_image(args.image)
    aspects = [Aspect(name) for name in args.aspect] if args.aspect else None
    prompt = normalized_prompt(_prompt(args))
    for aspect in aspects or ():
        Conversation.open(aspect, prompt)
    if aspects is None and prompt is None:
        _note(
            "There is no prompt, so correspondence is left out: it compares the image with its prompt. "
            "Give one with --prompt."
        )
    assessor = _load(args)
    if args.json:
        assessment = assessor.assess(args.image, prompt, aspects)
        narrow = not (sys.stdout.encoding or "").lower().startswith("utf")
        _print(json.dumps(assessment.to_dict(), indent=2, ensure_ascii=narrow))
        return
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    display = LiveDisplay() if live else PlainDisplay()
    with display.drawing():
        for event in assessor.stream(args.image, prompt, aspects):
            if isinstance(event, DescriptionDelta):
                display.add(event)
            elif isinstance(event, AspectResult):
                display.finish(event)
            else:
                assessment = event
    _print(_table(assessment))


def _prompt(args: argparse.Namespace) -> str | None:
    if args.prompt is not None:
        return str(args.prompt)
    embedded = find_prompt(args.image)
    if embedded is None:
        return None
    _note(f"Prompt read from the image file, {embedded.origin}: {embedded.text}")
    return embedded.text


def _table(assessment: Assessment) -> str:
    lines = [f"{'Aspect':<16}{'Rating':<11}MOS"]
    for result in assessment.aspects.values():
        scale = result.scale
        mos = f"{result.mos:.2f} of {scale.low:g}–{scale.high:g}"
        if result.limited:
            mos += f" (raw {result.raw_mos:.2f})"
        if result.calibration is not None:
            mos += f", likely {result.low:.2f}–{result.high:.2f}"
        if result.calibration is not None and result.percentile is not None:
            images = f"{result.calibration.training_images:,} images"
            mos += f", better than {int(result.percentile)} % of {images}"
        if result.unknown_prompt:
            mos += ", words of the prompt unknown"
        if result.read_characters:
            mos += f", of the prompt its first {result.read_characters:,} characters"
        lines.append(f"{result.aspect.capitalize():<16}{result.rating:<11}{mos}")
    source = f"Judged by {assessment.model} in {assessment.seconds:.1f} s."
    if any(result.calibration for result in assessment.aspects.values()):
        lines += ["", LIKELY_NOTE]
    return "\n".join([*lines, "", f"{source} Learned from {assessment.learned_from}."])


class PlainDisplay:
    """For files and pipes: each description in one piece, as soon as it is complete."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        yield

    def add(self, delta: DescriptionDelta) -> None:
        pass

    def finish(self, result: AspectResult) -> None:
        _print(f"{result.aspect.capitalize()}\n{_printable(result.description)}\n")


class LiveDisplay:
    """For terminals: one paragraph per aspect, all growing in place."""

    CLEAR_LINE, CLEAR_BELOW, UP = "\x1b[K", "\x1b[J", "\x1b[{}A"
    WRAP_OFF, WRAP_ON = "\x1b[?7l", "\x1b[?7h"  # wide letters must not add lines that are not counted

    def __init__(self) -> None:
        self.texts: dict[Aspect, str] = {}
        self.drawn = 0  # lines above the cursor that belong to the display

    @contextmanager
    def drawing(self) -> Iterator[None]:
        sys.stdout.write(self.WRAP_OFF)
        try:
            yield
            self._draw(whole=True)
        finally:
            sys.stdout.write(self.WRAP_ON)
            sys.stdout.flush()

    def add(self, delta: DescriptionDelta) -> None:
        self.texts[delta.aspect] = self.texts.get(delta.aspect, "") + delta.text
        self._draw()

    def finish(self, result: AspectResult) -> None:
        self.texts[result.aspect] = result.description  # without a cut-off last sentence
        self._draw()

    def _draw(self, whole: bool = False) -> None:
        width, height = shutil.get_terminal_size()
        # The cursor cannot go back above the top line, so while it grows only the end may be shown.
        room = max(1, (height - 1) // max(1, len(self.texts)) - 2)
        lines: list[str] = []
        for aspect, text in self.texts.items():
            paragraph = textwrap.wrap(_printable(text), max(20, width - 1))
            lines += [f"\x1b[1m{aspect.capitalize()}\x1b[0m", *paragraph[0 if whole else -room :], ""]
        back = self.UP.format(self.drawn) if self.drawn else ""
        body = "".join(f"{line}{self.CLEAR_LINE}\n" for line in lines)
        sys.stdout.write(f"\r{back}{body}{self.CLEAR_BELOW}")
        sys.stdout.flush()
        self.drawn = len(lines)


# --- score -------------------------------------------------------------------------------------


def _score(args: argparse.Namespace) -> None:
    with ScoreFile(args.out) as output:
        _score_into(output, args)


def _score_into(output: ScoreFile, args: argparse.Namespace) -> None:
    rows = read_rows(args.source, args.image_root, _note)
    todo = output.remaining(rows)
    if len(todo) < len(rows):
        _note(f"{len(rows) - len(todo)} of {len(rows)} rows are in {args.out} already.")
    if not todo:  # nothing to load a model for
        _print("scored 0, failed 0")
        return
    assessor = _load(args)
    output.start(assessor.card.title)
    # Several images are done at once; all but the first would be shown with the next ones otherwise.
    bar = tqdm(
        score(todo, output, assessor),
        total=len(todo),
        unit="image",
        file=sys.stderr,
        mininterval=0,
        miniters=1,
        smoothing=0,
    )
    failed = sum(bool(error) for error in bar)
    _print(f"scored {len(todo) - failed}, failed {failed}" + (" (see the error column)" if failed else ""))


# --- memory ------------------------------------------------------------------------------------


def _memory(_: argparse.Namespace) -> None:
    # The libraries behind it take a second to import.
    from m3agiqa.backbones.minicpm.memory_table import free_memory, memory_table

    _print(f"MiniCPM-Llama3-V 2.5 with published adapters, in GB:\n\n{memory_table()}\n\n{free_memory()}")


# --- terminal ----------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> Assessor:
    revision = ",".join(args.revision) if args.revision else os.environ.get("M3AGIQA_REVISION")
    wanted = {"quantize": args.quantize, "device": args.device, "revision": parse_revision(revision)}
    with _loading_bar() as progress:
        return Assessor.from_pretrained(args.model, progress, **wanted)


@contextmanager
def _loading_bar() -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal; it disappears when loading is done."""
    form = "{desc} {percentage:3.0f}% |{bar}|"
    with tqdm(total=1.0, bar_format=form, leave=False, disable=None, file=sys.stderr) as bar:

        def show(message: str, done: float) -> None:
            bar.set_description_str(message, refresh=False)
            bar.n = done
            bar.refresh()

        yield show


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(_printable(text) + "\n")


def _printable(text: str) -> str:
    """Text from files and models without control characters, which could steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
