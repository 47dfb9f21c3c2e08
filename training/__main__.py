"""Command line of the stages: `python -m training run CONFIG`, or one stage at a time."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.checkpoint.card import find_checkpoint
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import is_disk_full
from m3agiqa.predictor.lightning_import import CONTEXT_LENGTH
from m3agiqa.samples import read_samples, write_samples
from training.config import RunConfig, build, described_settings, field_docs, merged, read_yaml
from training.convert import import_predictor
from training.data.conversations import export_conversations
from training.data.human_feedback import merge, read_annotations
from training.data.worked_examples import WorkedExamples
from training.evaluation.ablations import ablate
from training.evaluation.cross_dataset import cross
from training.evaluation.rating_words import evaluate_responses
from training.evaluation.sanity import sanity
from training.nano.held_out_groups import as_markdown, evaluate_held_out_groups
from training.parallel import Shard, follow_starter
from training.pipeline import STAGE_NAMES, STAGES, Stage, register_run, run_stages
from training.pipeline import plan as plan_stages
from training.remote.teachers import teacher
from training.run import CONFIG_FILE, RunFolder
from training.stages.describe_remote import ServerConfig
from training.stages.distill import DistillConfig, Replies, distill, plan, planned_cost

Command = Callable[[argparse.Namespace], None]

NANO_CONFIG = Path(__file__).with_name("configs") / "nano.yaml"


def main(argv: list[str] | None = None) -> int:
    """Run a stage; 0 if all went well, 2 for errors that the user can mend."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except M3AgiqaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; the same command continues from here.\n")
        return 130
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.stderr.write("The disk is full. Make room; the same command continues from here.\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="STAGE")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    def of_run(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        """A command that works in the folder of a run."""
        sub = add(name, command, text)
        sub.add_argument(
            "config", type=Path, nargs="?", help="settings of the run (YAML), see training/configs"
        )
        sub.add_argument("--run", type=Path, help="its folder (default: runs/ and the name of the settings)")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="change a setting, e.g. data.path=/data/agiqa-3k or fit.losses.plcc=0.5",
        )
        return sub

    everything = of_run("run", _run, "all stages, from the data set to a checkpoint; skips what is done")
    _add_plan(everything)
    everything.add_argument(
        "--add-annotations",
        type=Path,
        metavar="EXPORT",
        help="train with people's corrections on top (folder of `python -m annotation export`), compare with "
        "the model before, and register the new one as a candidate",
    )
    everything.add_argument(
        "--register",
        type=Path,
        metavar="DIR",
        help="folder of registered models (default: models in M3AGIQA_DATA, or in data)",
    )
    explaining = add("settings", _settings, "all settings of a run, with their defaults")
    explaining.add_argument("name", nargs="?", default="", help="only those of this name, e.g. fit")
    for stage in STAGES:
        if stage.name != "distill":  # the command of this name needs no run
            _add_stage_options(stage, of_run(stage.name, _run_stage, stage.summary))
    checking = of_run("sanity", _sanity, "damaged images and wrong prompts must score lower")
    checking.add_argument("--model", default="nano", help="shipped name or checkpoint folder")

    of_run(
        "proxies",
        _proxies,
        "agreement of nano's closed-form parts with scores on held-out sources, generators and prompts",
    )
    again = add("reproduce-nano", _reproduce, "make the shipped model again")
    again.add_argument("data", type=Path, help="folder of agiqa-3k, agi-native and agi-teacher")
    again.add_argument("--run", type=Path, help="folder of the run (default: runs/nano)")
    _add_plan(again)

    crossing = add("cross", _cross, "one run's model on another run's data (the paper's Table VI)")
    crossing.add_argument(
        "trained", type=Path, help="folder of the run whose backbone and predictors are used"
    )
    crossing.add_argument("tested", type=Path, help="folder of the run whose data is predicted")
    crossing.add_argument("--retrain", action="store_true", help="train the predictors anew on that data")
    grid = add("ablate", _ablate, "a grid of settings as tables like the paper's III and IV")
    grid.add_argument("config", type=Path, help="settings of the grid (YAML)")
    grid.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder of the results")
    grid.add_argument("--processes", type=int, default=1, metavar="N", help="predictors trained at once")
    grid.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    _add_distill(add)
    judging = add("evaluate-responses", _responses, "rating words of a published response file")
    judging.add_argument("file", type=Path, help="JSON with image and response_1")
    judging.add_argument("--mos", type=Path, required=True, help="CSV with the images' names and true scores")
    judging.add_argument("--mos-column", required=True, help="its column, e.g. mos_quality")
    judging.add_argument(
        "--scale", type=float, nargs=2, default=(0.0, 5.0), metavar=("LOW", "HIGH"), help="of the scores"
    )
    theirs = add("import-predictor", _import, "convert a predictor of the paper's authors")
    theirs.add_argument("file", type=Path, help="Lightning checkpoint (.ckpt)")
    theirs.add_argument("--aspect", type=Aspect, choices=list(Aspect), required=True)
    theirs.add_argument("--out", type=Path, required=True, help="folder for the converted predictor")
    theirs.add_argument("--head", type=Path, help="safetensors with the output head to fuse W_proj with")
    theirs.add_argument(
        "--context-length",
        type=int,
        default=CONTEXT_LENGTH,
        metavar="N",
        help="tokens that conversations were cut to in its training, where the file does not say (768 for "
        "AIGCIQA-20k; default: %(default)s)",
    )
    giving = add("export-conversations", _export, "samples as the conversation files of the paper's authors")
    giving.add_argument("samples", type=Path, help="samples.jsonl with descriptions and MOS")
    giving.add_argument("--aspect", type=Aspect, choices=list(Aspect), required=True)
    giving.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0), metavar=("LOW", "HIGH"))
    giving.add_argument("--out", type=Path, required=True, help="JSON file")
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--until", choices=STAGE_NAMES, metavar="STAGE", help="the last stage to be run")


def _add_stage_options(stage: Stage, parser: argparse.ArgumentParser) -> None:
    """Keyword arguments of the stage, and other ones that only its command has."""
    keywords: dict[str, Callable[[Any], Any]] = {}
    if stage.name in ("describe", "encode"):
        keywords["share"] = lambda text: Shard.parse(text) if text else Shard.of_launcher()
        parser.add_argument("--share", help="INDEX/COUNT: do this part of the work alone")
    if stage.name == "describe":
        docs = field_docs(ServerConfig)
        parser.add_argument(
            "--server",
            metavar="URL",
            help="let a model on a server describe; the run keeps this, `encode` then reads what was said. "
            + docs["url"],
        )
        parser.add_argument("--server-model", metavar="NAME", help=docs["model"])
    if stage.name in ("fit", "transfer"):
        keywords["aspects"] = lambda aspects: aspects
        parser.add_argument("--aspect", type=Aspect, choices=list(Aspect), action="append", dest="aspects")
    if stage.name == "ship":
        keywords["out"] = lambda folder: folder
        parser.add_argument(
            "--out", type=Path, help="folder of the checkpoint (default: checkpoint in the run)"
        )
    parser.set_defaults(stage=stage, keywords=keywords)


def _add_distill(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    command = add("distill", _distill, "let an online multimodal LLM put scores into words")
    command.add_argument("samples", type=Path, help="samples.jsonl with images and MOS")
    command.add_argument("--out", type=Path, required=True, help="folder for the answers and the samples")
    command.add_argument(
        "--teacher",
        action="append",
        metavar="NAME",
        help="gemini, openai (either with :MODEL) or recorded:FILE (JSON Lines, or an export's folder); a "
        "further one is asked what the one before refuses (default: gemini, then openai if OPENAI_API_KEY is "
        "set)",
    )
    command.add_argument(
        "--add-annotations",
        type=Path,
        metavar="EXPORT",
        help="people's descriptions stand in for the teacher's, and those of images that are not held out go "
        "into its requests as worked examples (folder of `python -m annotation export`)",
    )
    command.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0), metavar=("LOW", "HIGH"))
    command.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    docs = field_docs(DistillConfig)
    for option in fields(DistillConfig):
        flag, text = "--" + option.name.replace("_", "-"), f"{docs[option.name]} (default: %(default)s)"
        command.add_argument(flag, type=type(option.default), default=option.default, metavar="N", help=text)


# --- stages of a run -----------------------------------------------------------------------------


def _folder(args: argparse.Namespace) -> RunFolder:
    """The run that is meant, with the settings that are given; nothing is written yet."""
    export, server = getattr(args, "add_annotations", None), _server(args)
    if args.config is None:
        if args.run is None:
            raise InputError("Give a settings file, or --run with the folder of a run that was begun before.")
        run = RunFolder.open(args.run)
        if not args.set and export is None and not server:
            return run
        settings = read_yaml(args.run / CONFIG_FILE)
    else:
        settings = read_yaml(args.config)
    if export is not None:  # which is all the data there is, if the settings name none
        settings = merged({"data": {"path": str(export)}}, merged(settings, {"annotations": str(export)}))
    config = build(RunConfig, merged(_changed(settings, args.set), server), args.config or args.run)
    return RunFolder(args.run or _default_folder(args.config, export), config)


def _begun(args: argparse.Namespace) -> RunFolder:
    """The run that is meant; settings that are given are written down in it."""
    run = _folder(args)
    run.begin()
    return run


def _server(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that --server and --server-model stand for."""
    url, model = getattr(args, "server", None), getattr(args, "server_model", None)
    if url is not None:
        return {"server": {"url": url, "model": model}}
    return {} if model is None else {"server": {"model": model}}


def _default_folder(config: Path, export: Path | None) -> Path:
    """Where a run is if nothing else is said; one with annotations leaves that of the data alone be."""
    return Path("runs") / (config.stem if export is None else f"{config.stem}-{export.resolve().name}")


def _changed(settings: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Settings with NAME=VALUE applied; names have dots, values are YAML."""
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set needs NAME=VALUE, got {change!r}.")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {change}: the value is not YAML.") from error
        for part in reversed(name.split(".")):
            nested = {part: nested}
        settings = merged(settings, nested)
    return settings


def _run(args: argparse.Namespace) -> None:
    follow_starter()
    run = _folder(args) if args.plan else _begun(args)
    for name, state, text in plan_stages(run):
        sys.stdout.write(f"{name:9} {state:9} {text}\n")
    if args.plan:
        return
    run_stages(run, args.until)
    if (run.report_folder / "report.html").exists():
        sys.stdout.write(f"Report: {run.report_folder / 'report.html'}\n")
    if run.checkpoint_folder.exists():
        sys.stdout.write(f"Try it: M3AGIQA_MODEL={run.checkpoint_folder} python app.py\n")
    if run.config.annotations is not None and args.until in (None, "ship"):
        models = args.register or Path(os.environ.get("M3AGIQA_DATA") or "data") / "models"
        candidate = register_run(run, models)
        sys.stdout.write(f"\n{candidate.comparison}\n\n")
        sys.stdout.write(f"Registered as {candidate.name} in {models}; promote it on the app's tab Models.\n")


def _run_stage(args: argparse.Namespace) -> None:
    follow_starter()
    stage, keywords = args.stage, {name: parse(getattr(args, name)) for name, parse in args.keywords.items()}
    run = _begun(args)
    result = stage.run(run, **keywords)
    if stage.name == "ship":
        sys.stdout.write(f"{result.title} is in {args.out or run.checkpoint_folder}\n")
    elif stage.name == "transfer":
        _show(run.transferred())
    elif result is not None:
        _show(result)


def _sanity(args: argparse.Namespace) -> None:
    run = _begun(args)
    _show(sanity(run.samples, find_checkpoint(args.model), run.cache, run.config.seed))


def _proxies(args: argparse.Namespace) -> None:
    run = _begun(args)
    measures = evaluate_held_out_groups(
        run.samples, run.config.extras, run.scale, run.folder / "proxies", run.config.seed
    )
    measures.to_csv(run.folder / "proxies.csv", index=False)
    sys.stdout.write(as_markdown(measures))


def _reproduce(args: argparse.Namespace) -> None:
    data = json.dumps(str(args.data))  # which is YAML too
    args.config, args.set = NANO_CONFIG, [f"data.path={data}"]
    args.add_annotations = args.register = None
    _run(args)


def _settings(args: argparse.Namespace) -> None:
    rows = list(described_settings(RunConfig))
    shown = [row for row in rows if f"{row[0]}.".startswith(f"{args.name}.")] if args.name else rows
    if not shown:
        raise InputError(f"There is no setting {args.name}; leave the name out to see all.")
    for name, default, text in shown:
        sys.stdout.write(f"{name}: {default}".rstrip() + "\n")
        if text:
            sys.stdout.write(textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ") + "\n")


# --- other commands ------------------------------------------------------------------------------


def _cross(args: argparse.Namespace) -> None:
    _show(cross(RunFolder.open(args.trained), RunFolder.open(args.tested), args.retrain))


def _ablate(args: argparse.Namespace) -> None:
    settings = _changed(read_yaml(args.config), args.set)
    sys.stdout.write(ablate(settings, args.config, args.out, args.processes))


def _distill(args: argparse.Namespace) -> None:
    scale, journal = _scale(args), args.out / "replies.jsonl"
    config = DistillConfig(**{option.name: getattr(args, option.name) for option in fields(DistillConfig)})
    samples, annotated = read_samples(args.samples), None
    if args.add_annotations is not None:
        samples, annotated = merge(samples, scale, read_annotations(args.add_annotations))
    examples = WorkedExamples(samples, annotated, config.examples)
    if args.dry_run:
        requests = list(plan(samples, Replies(journal), scale, examples))
        for request in requests:
            sys.stdout.write(f"--- {request.sample.id}: {request.sample.image}\n{request.text}\n")
        sys.stdout.write(f"--- {planned_cost(requests, config)}\n")
        return
    fallback = ["openai"] if os.environ.get("OPENAI_API_KEY") else []
    teachers = [teacher(name) for name in args.teacher or ["gemini", *fallback]]
    filled, summary = distill(samples, teachers, journal, scale, config, examples=examples)
    write_samples(filled, args.out / "samples.jsonl")
    for name, reason in summary.failed.items():
        sys.stderr.write(f"{name}: {reason}\n")
    sys.stdout.write(f"{summary}\n")


def _scale(args: argparse.Namespace) -> MosScale:
    low, high = args.scale
    if not low < high:
        raise InputError(f"--scale needs LOW below HIGH, got {low:g} and {high:g}.")
    return MosScale(low, high)


def _responses(args: argparse.Namespace) -> None:
    measures = evaluate_responses(args.file, args.mos, args.mos_column, _scale(args))
    sys.stdout.write(json.dumps(measures) + "\n")


def _import(args: argparse.Namespace) -> None:
    predictor = import_predictor(args.file, args.aspect, args.out, args.head, args.context_length)
    reads = {"vocab": "logits", "hidden": "hidden states"}[predictor.config.projection]
    sys.stdout.write(f"The {args.aspect} predictor, which reads {reads}, is in {args.out}\n")


def _export(args: argparse.Namespace) -> None:
    export_conversations(read_samples(args.samples), args.aspect, _scale(args), args.out)
    sys.stdout.write(f"The conversations are in {args.out}\n")


def _show(measures: dict) -> None:
    sys.stdout.write(json.dumps(measures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
