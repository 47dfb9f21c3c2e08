"""The command line: `assess` one image, `compare` some, `score` many, `serve` the app; `memory`."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias, get_args

from tqdm import tqdm

import m3agiqa
from m3agiqa.aspects import Aspect
from m3agiqa.assessment import LIKELY_NOTE, AspectResult, Assessment, DescriptionDelta
from m3agiqa.backbones.placement import Quantization
from m3agiqa.batch_scoring import ScoreFile, score
from m3agiqa.checkpoint.revisions import parse_revision
from m3agiqa.conversation import Conversation, normalized_prompt
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import write_atomically
from m3agiqa.image_metadata import find_prompt
from m3agiqa.images import open_image
from m3agiqa.quality_map import QualityMap
from m3agiqa.ranking import (
    DIFFERENCE_NOTE,
    MAX_IMAGES,
    MIN_IMAGES,
    OVERALL,
    Difference,
    Ranking,
    check_count,
    parse_weights,
    ranked_as_assessed,
    rankings_csv,
)
from m3agiqa.ray_scoring import score_on_ray
from m3agiqa.score_inputs import ScoreRow, read_rows
from m3agiqa.score_parts import DEFAULT_PART_SIZE, PartedScores
from m3agiqa.tables import TABLE_SUFFIXES

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

APP_ENTRY_POINTS = "m3agiqa.app"  # group of what an installation can serve
MAX_PORT = 2**16 - 1
NOTHING_LEFT = "Nothing is left to compare."
MAX_NAME_WIDTH = 40  # characters of an image's name in a table; of a longer one the end


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
    parser.add_argument("--version", action="version", version=f"m3agiqa {m3agiqa.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    model = _model_options()
    _add_assess(commands, model)
    _add_score(commands, model)
    _add_compare(commands, model)
    _add_serve(commands)
    _add_memory(commands)
    return parser


def _model_options() -> argparse.ArgumentParser:
    """Which model, and where it is loaded: for all commands that judge."""
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
    return model


# --- assess ------------------------------------------------------------------------------------


def _add_assess(commands: Commands, model: argparse.ArgumentParser) -> None:
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
    assess.add_argument(
        "--map",
        action="store_true",
        help="also where it looks bad; with --json the scores of all parts",
    )
    assess.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    assess.set_defaults(command=_assess, interrupted="Interrupted.")


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
        extra = {"map": _quality_map(assessor, args.image, assessment).to_dict()} if args.map else {}
        _print_json({**assessment.to_dict(), **extra})
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
    if args.map:
        quality_map = _quality_map(assessor, args.image, assessment)
        for aspect, scores in quality_map.scores.items():
            place = f"{quality_map.worst_place(aspect)} ({min(scores):+.2f} beside the median part)"
            _print(f"{aspect.capitalize()} is worst at the {place}.")
        _print(quality_map.method)


def _quality_map(assessor: m3agiqa.Assessor, image: str, assessment: Assessment) -> QualityMap:
    with tqdm(unit="part", leave=False, disable=None, file=sys.stderr) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return assessor.quality_map(image, assessment, report)


def _prompt(args: argparse.Namespace) -> str | None:
    if args.prompt is not None:
        return str(args.prompt)
    embedded = find_prompt(args.image)
    if embedded is None:
        return None
    _note(f"Prompt read from the image file, {embedded.origin}: {embedded.text}".removesuffix(": "))
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


def _add_score(commands: Commands, model: argparse.ArgumentParser) -> None:
    batch = commands.add_parser(
        "score",
        parents=[model],
        help="judge many images into a CSV",
        description="Judge many images into a CSV. The same command again goes on where it was stopped: "
        "rows that are in OUT already, failed ones included, are not judged anew.",
    )
    batch.add_argument(
        "source",
        metavar="CSV|PARQUET|FOLDER|TAR",
        type=Path,
        nargs="+",
        help="a CSV or Parquet file with the columns image,prompt; a folder of images with prompts in .txt "
        "files of the same name or in the images; or WebDataset tars, as 'images-{000..099}.tar' or a folder",
    )
    batch.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="a CSV; with --engine ray, a folder of parts"
    )
    batch.add_argument(
        "--image-root",
        metavar="DIR",
        type=Path,
        help="folder that relative paths in a table start from (default: the table's own)",
    )
    batch.add_argument(
        "--engine",
        choices=["process", "ray"],
        default="process",
        help="process (default): this one; ray: many workers on this machine or a Ray cluster, which needs "
        'pip install "m3agiqa[scale]"',
    )
    on_ray = batch.add_argument_group("with --engine ray")
    on_ray.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of a Ray cluster, whose machines find all files under the same paths (default: $RAY_ADDRESS, "
        "else one is started on this machine)",
    )
    on_ray.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="models at work at once (default: one for each GPU, without GPUs one for each core)",
    )
    on_ray.add_argument("--format", choices=["parquet", "csv"], help="of the parts (default: parquet)")
    on_ray.add_argument(
        "--part-size",
        type=_positive,
        metavar="ROWS",
        help=f"rows of a part, which is done anew when its worker dies (default: {DEFAULT_PART_SIZE})",
    )
    on_ray.add_argument(
        "--retry",
        action="store_true",
        default=None,
        help="score parts again that have failed rows, or other rows than now (without Ray: delete the "
        "failed rows from OUT, and run the same command)",
    )
    batch.set_defaults(command=_score, interrupted="Interrupted. The same command goes on from here.")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 1 on")
    return int(text)


def _score(args: argparse.Namespace) -> None:
    if args.engine == "ray":
        _score_on_ray(args)
        return
    for option in ("address", "workers", "format", "part_size", "retry"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} is for --engine ray.")
    with ScoreFile(args.out) as output:
        _score_into(output, args)


def _score_into(output: ScoreFile, args: argparse.Namespace) -> None:
    todo = output.remaining(read_rows(*args.source, image_root=args.image_root, note=_note))
    if len(todo) < todo.total:
        _note(f"{todo.total - len(todo)} of {todo.total} rows are in {args.out} already.")
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
    _print_counts(len(todo) - failed, failed)


def _score_on_ray(args: argparse.Namespace) -> None:
    rows = read_rows(*args.source, image_root=args.image_root, note=_note)
    output = PartedScores(
        args.out.absolute(),
        f".{args.format or 'parquet'}",
        args.part_size or DEFAULT_PART_SIZE,
        retry=bool(args.retry),
    )
    folder = Path(args.model)
    model = str(folder.absolute()) if folder.is_dir() else args.model
    load = partial(m3agiqa.Assessor.from_pretrained, model, **_placement(args))
    former = 0
    with tqdm(unit="image", file=sys.stderr, smoothing=0) as bar:

        def show(done: int, total: int) -> None:
            nonlocal former
            if bar.total is None:
                bar.n = former = done
            if bar.n == former:  # until the first rows are done, models are loaded, which tells no rate
                bar.initial = done
                bar.unpause()
            bar.total, bar.n = total, done
            bar.refresh()

        scored, failed = score_on_ray(rows, output, load, show, address=args.address, workers=args.workers)
    _print_counts(scored, failed)


def _print_counts(scored: int, failed: int) -> None:
    _print(f"scored {scored}, failed {failed}" + (" (see the error column)" if failed else ""))


# --- compare -----------------------------------------------------------------------------------


def _add_compare(commands: Commands, model: argparse.ArgumentParser) -> None:
    compare = commands.add_parser(
        "compare",
        parents=[model],
        help="put images of one prompt in order",
        description=f"Judge {MIN_IMAGES} to {MAX_IMAGES} images of one prompt and put them in order, the "
        "best first. Of a CSV or folder, the images of each prompt are compared with each other.",
    )
    compare.add_argument(
        "images",
        metavar="IMAGE|CSV|FOLDER",
        nargs="+",
        help="images, or one CSV with the columns image,prompt, or one folder",
    )
    compare.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what all images were generated from; by default each one's own, of the CSV or in its file",
    )
    compare.add_argument(
        "--order", default=OVERALL, choices=[OVERALL, *map(str, Aspect)], help="what they are ordered by"
    )
    compare.add_argument(
        "--weights",
        metavar="ASPECT=NUMBER,...",
        help="of the aspects in the overall score, such as quality=2,correspondence=1; those that are not "
        "named do not count (default: all the same)",
    )
    compare.add_argument("--json", action="store_true", help="print a JSON list, an object for each prompt")
    compare.add_argument("--csv", metavar="FILE", type=Path, help="write the table into a CSV, too")
    compare.set_defaults(command=_compare, interrupted="Interrupted.")


def _compare(args: argparse.Namespace) -> None:
    # As for `assess`, what can be wrong with the input is told before the model is loaded.
    weights = parse_weights(args.weights)
    if args.csv and not args.csv.absolute().parent.is_dir():
        raise InputError(f"There is no folder {args.csv.parent} to write {args.csv.name} to.")
    groups = _comparable(_groups(args), args.order)
    assessor = _load(args)
    rankings: list[Ranking] = []
    with tqdm(total=sum(map(len, groups.values())), unit="image", file=sys.stderr, disable=None) as bar:
        for prompt, rows in groups.items():
            named = [row.source() for row in rows], prompt, weights, [row.image for row in rows]
            ranking, before = Ranking(prompt), bar.n
            try:
                for ranking in ranked_as_assessed(assessor, *named):
                    bar.update(before + len(ranking.images) + len(ranking.left_out) - bar.n)
            except InputError as error:
                if len(groups) == 1:
                    raise
                left_out = f"The images {_having(prompt)} are left out. {error}"
                bar.write(_printable(left_out), file=sys.stderr)
                continue
            rankings.append(ranking)
    if not rankings:
        raise InputError(NOTHING_LEFT)
    for ranking in rankings:
        for each in ranking.left_out:
            _note(f"{each.name} is left out. {each.reason}")
    if args.csv:
        try:
            write_atomically(args.csv, "\ufeff" + rankings_csv(rankings, args.order))
        except OSError as error:
            raise InputError(f"{args.csv} cannot be written: {error.strerror}.") from error
    if args.json:
        _print_json([ranking.to_dict(args.order) for ranking in rankings])
    else:
        _print("\n\n".join([*(_ranking_table(each, args.order) for each in rankings), DIFFERENCE_NOTE]))


def _groups(args: argparse.Namespace) -> dict[str | None, list[ScoreRow]]:
    """The images by their prompts. Raises InputError for a mixture of inputs."""
    given = [Path(name) for name in args.images]
    is_source = [path.is_dir() or path.suffix.lower() in TABLE_SUFFIXES for path in given]
    if not any(is_source):
        rows: Iterable[ScoreRow] = map(ScoreRow, args.images, given)
    elif len(given) > 1:
        raise InputError("Give images, or one CSV, or one folder; not several or both.")
    else:
        rows = read_rows(given[0], note=_note)
    groups: dict[str | None, list[ScoreRow]] = {}
    for row in rows if args.prompt is not None else (row.complete() for row in rows):
        if row.error:
            _note(f"{row.image} is left out. {row.error}")
            continue
        prompt = normalized_prompt(row.prompt if args.prompt is None else args.prompt)
        groups.setdefault(prompt, []).append(row)
    return groups


def _comparable(groups: dict[str | None, list[ScoreRow]], order: str) -> dict[str | None, list[ScoreRow]]:
    """The groups that can be put in this order; the others are told. Raises InputError where none is left."""
    kept = dict(groups)
    for prompt, rows in groups.items():
        try:
            check_count(len(rows))
            if order == Aspect.CORRESPONDENCE and prompt is None:
                raise InputError(
                    "There is no order by correspondence without a prompt; give one with --prompt."
                )
        except InputError as error:
            if len(groups) == 1:
                raise
            del kept[prompt]
            if len(rows) == 1:
                _note(f"{rows[0].image} is left out: it is the only image {_having(prompt)}.")
            else:
                _note(f"The images {_having(prompt)} are left out. {error}")
    if not kept and groups and max(map(len, groups.values())) == 1:
        raise InputError(
            "Every image has a prompt of its own, so there is nothing to compare. If they are of one prompt, "
            "give it with --prompt."
        )
    if not kept:
        raise InputError(NOTHING_LEFT)
    if None in kept:
        _note("Without a prompt, correspondence is left out. Give one with --prompt.")
    return kept


def _having(prompt: str | None) -> str:
    return f"with the prompt “{prompt}”" if prompt else "without a prompt"


def _ranking_table(ranking: Ranking, order: str) -> str:
    places = ranking.places(order)
    width = min(max(len(each.image.name) for each in places), MAX_NAME_WIDTH)
    lines = [f"Prompt: {_printable(ranking.prompt)}"] if ranking.prompt else []
    lines.append(
        "".join(
            ["Place  ", f"{'Image':<{width + 2}}", *(f"{name.capitalize():<16}" for name in ranking.orders)]
        )
    )
    for each in places:
        figures = [each.image.figure(name, ranking.weights) for name in ranking.orders]
        shown = [
            f"{figure.mos:.2f}" + (f" ({figure.low:.1f}–{figure.high:.1f})" if figure.low is not None else "")
            for figure in figures
        ]
        name = _printable(each.image.name)[-width:]
        verdict = f"{each.to_next} than the next" if each.to_next is Difference.CLEAR else ""
        verdict = f"{each.to_next} to the next" if each.to_next is Difference.EQUAL else verdict
        cells = "".join(f"{cell:<16}" for cell in shown)
        lines.append(f"{each.place:<7}{name:<{width + 2}}{cells}{verdict}".rstrip())
    equal = [each.image.name for each in places if each.to_first is Difference.EQUAL]
    if equal:
        lines.append(f"About equal to the first: {', '.join(map(_printable, equal))}.")
    return "\n".join(lines)


# --- serve -------------------------------------------------------------------------------------


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="open the app for browsers",
        description="Serve the app to browsers until interrupted. Environment variables set the rest, such "
        "as M3AGIQA_MODEL and M3AGIQA_AUTH.",
    )
    serve.add_argument("--host", metavar="ADDRESS", help="0.0.0.0: reachable from other machines, too")
    serve.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="default: 7860; where it is taken, the next one that is free",
    )
    serve.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the database and the images (default: $M3AGIQA_DATA, else data)",
    )
    serve.set_defaults(command=_serve, interrupted="Stopped.")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 1 to {MAX_PORT}")
    return int(text)


def _serve(args: argparse.Namespace) -> None:
    chosen = {"GRADIO_SERVER_NAME": args.host, "GRADIO_SERVER_PORT": args.port, "M3AGIQA_DATA": args.data}
    # Before the app is imported, as Gradio reads its variables then.
    os.environ.update({name: str(value) for name, value in chosen.items() if value is not None})
    installed = entry_points(group=APP_ENTRY_POINTS, name="serve")
    if not installed:
        raise InputError("The package is not installed; in the repository, python app.py starts the app.")
    installed["serve"].load()()


# --- memory ------------------------------------------------------------------------------------


def _add_memory(commands: Commands) -> None:
    memory = commands.add_parser("memory", help="how much memory the paper's model needs, by setting")
    memory.set_defaults(command=_memory, interrupted="Interrupted.")


def _memory(_: argparse.Namespace) -> None:
    # The libraries behind it take a second to import.
    from m3agiqa.backbones.minicpm.memory_table import free_memory, memory_table

    _print(f"MiniCPM-Llama3-V 2.5 with published adapters, in GB:\n\n{memory_table()}\n\n{free_memory()}")


# --- terminal ----------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> m3agiqa.Assessor:
    with _loading_bar() as progress:
        return m3agiqa.Assessor.from_pretrained(args.model, progress, **_placement(args))


def _placement(args: argparse.Namespace) -> dict[str, Any]:
    revision = ",".join(args.revision) if args.revision else os.environ.get("M3AGIQA_REVISION")
    return {"quantize": args.quantize, "device": args.device, "revision": parse_revision(revision)}


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


def _print_json(values: object) -> None:
    narrow = not (sys.stdout.encoding or "").lower().startswith("utf")
    _print(json.dumps(values, indent=2, ensure_ascii=narrow))


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(_printable(text) + "\n")


def _printable(text: str) -> str:
    """Text from files and models without control characters, which could steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
