"""Command line of the stages: `python -m training STAGE --run DIR …`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.checkpoint import SHIPPED, find_checkpoint
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.samples import read_samples, write_samples
from training.datasets import load_teacher
from training.distill import DistillConfig, Journal, distill, plan
from training.hidden_cache import HiddenCache
from training.import_predictor import import_predictor
from training.responses import evaluate_responses
from training.run import Run
from training.sanity import sanity
from training.teachers import teacher


def main(argv: list[str] | None = None) -> int:
    """Run a stage; 0 if all went well, 2 for errors that the user can mend."""
    args = _parser().parse_args(argv)
    try:
        args.stage(args)
    except M3AgiqaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; the same command continues from here.\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    stages = parser.add_subparsers(required=True, metavar="STAGE")

    def stage(name: str, function, text: str, *, data: bool = False) -> argparse.ArgumentParser:
        sub = stages.add_parser(name, help=text, description=text)
        sub.set_defaults(stage=function)
        sub.add_argument("--run", type=Path, default=Path("runs/nano"), help="folder of the run")
        if data:
            sub.add_argument(
                "--data", type=Path, required=True, help="folder that holds agi-teacher and others"
            )
        return sub

    stage("datasets", lambda a: Run(a.run).datasets(a.data), "read a data set into samples", data=True)
    stage("align", lambda a: Run(a.run).align(a.data), "teach the connector alone", data=True)
    stage(
        "finetune",
        lambda a: Run(a.run).finetune(a.data),
        "teach the backbone to describe and rate",
        data=True,
    )
    stage("describe", lambda a: Run(a.run).describe(), "let the backbone speak; keep its hidden states")
    stage("encode", lambda a: Run(a.run).encode(), "hidden states for the teacher's own descriptions")
    fitting = stage("fit", _fit, "train the predictors from cached hidden states")
    stage("evaluate", lambda a: _show(Run(a.run).evaluate()), "agreement on the test split")
    moving = stage("transfer", _transfer, "agreement on sources that the predictor was refitted without")
    for sub in (fitting, moving):
        sub.add_argument("--aspect", type=Aspect, choices=list(Aspect), action="append")
    checking = stage("sanity", _sanity, "damaged images and wrong prompts must score lower", data=True)
    checking.add_argument("--model", default="nano", help="shipped name or checkpoint folder")
    told = stages.add_parser("evaluate-responses", help="rating words of a published response file")
    told.set_defaults(stage=_responses)
    told.add_argument("file", type=Path, help="JSON with image and response_1")
    told.add_argument("--mos", type=Path, required=True, help="CSV with the images' names and true scores")
    told.add_argument("--mos-column", required=True, help="its column, e.g. mos_quality")
    told.add_argument(
        "--scale", type=float, nargs=2, default=(0.0, 5.0), metavar=("LOW", "HIGH"), help="of the scores"
    )
    _add_distill(stages)
    theirs = stages.add_parser("import-predictor", help="convert a predictor of the paper's authors")
    theirs.set_defaults(stage=_import)
    theirs.add_argument("file", type=Path, help="Lightning checkpoint (.ckpt)")
    theirs.add_argument("--aspect", type=Aspect, choices=list(Aspect), required=True)
    theirs.add_argument("--out", type=Path, required=True, help="folder for the converted predictor")
    theirs.add_argument("--head", type=Path, help="safetensors with the output head to fuse W_proj with")
    everything = stage(
        "reproduce-nano", _reproduce, "all stages, from base weights to shipped files", data=True
    )
    everything.add_argument("--out", type=Path, default=SHIPPED / "nano", help="folder of the checkpoint")
    shipping = stage("ship", lambda a: _ship(Run(a.run), a.out), "put a run's checkpoint together")
    shipping.add_argument("--out", type=Path, default=SHIPPED / "nano", help="folder of the checkpoint")
    return parser


def _add_distill(stages: argparse._SubParsersAction) -> None:
    text = "let an online multimodal LLM put scores into words"
    told = stages.add_parser("distill", help=text, description=text)
    told.set_defaults(stage=_distill)
    told.add_argument("samples", type=Path, help="samples.jsonl with images and MOS")
    told.add_argument("--out", type=Path, required=True, help="folder for the answers and the samples")
    told.add_argument(
        "--teacher",
        action="append",
        metavar="NAME",
        help="gemini, openai (either with :MODEL) or recorded:FILE; a further one is asked what the one "
        "before refuses (default: gemini, then openai if OPENAI_API_KEY is set)",
    )
    told.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0), metavar=("LOW", "HIGH"))
    told.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    for option in fields(DistillConfig):
        flag = "--" + option.name.replace("_", "-")
        told.add_argument(flag, type=type(option.default), default=option.default, metavar="N")


def _distill(args: argparse.Namespace) -> None:
    scale, journal = _scale(args), args.out / "replies.jsonl"
    samples = read_samples(args.samples)
    if args.dry_run:
        asked = 0
        for sample, text in plan(samples, Journal(journal), scale):
            sys.stdout.write(f"--- {sample.id}: {sample.image}\n{text}\n")
            asked += 1
        sys.stdout.write(f"--- {asked:,} requests would be sent.\n")
        return
    fallback = ["openai"] if os.environ.get("OPENAI_API_KEY") else []
    teachers = [teacher(name) for name in args.teacher or ["gemini", *fallback]]
    config = DistillConfig(**{option.name: getattr(args, option.name) for option in fields(DistillConfig)})
    filled, summary = distill(samples, teachers, journal, scale, config)
    write_samples(filled, args.out / "samples.jsonl")
    for name, reason in summary.failed.items():
        sys.stderr.write(f"{name}: {reason}\n")
    sys.stdout.write(f"{summary}\n")


def _scale(args: argparse.Namespace) -> MosScale:
    low, high = args.scale
    if not low < high:
        raise InputError(f"--scale needs LOW below HIGH, got {low:g} and {high:g}.")
    return MosScale(low, high)


def _fit(args: argparse.Namespace) -> None:
    for aspect in args.aspect or Aspect:
        Run(args.run).fit(aspect)


def _transfer(args: argparse.Namespace) -> None:
    for aspect in args.aspect or Aspect:
        Run(args.run).transfer(aspect)
    _show(Run(args.run).transferred())


def _responses(args: argparse.Namespace) -> None:
    found = evaluate_responses(args.file, args.mos, args.mos_column, _scale(args))
    sys.stdout.write(json.dumps(found) + "\n")


def _import(args: argparse.Namespace) -> None:
    predictor = import_predictor(args.file, args.aspect, args.out, args.head)
    reads = {"vocab": "logits", "hidden": "hidden states"}[predictor.config.projection]
    sys.stdout.write(f"The {args.aspect} predictor, which reads {reads}, is in {args.out}\n")


def _sanity(args: argparse.Namespace) -> None:
    checkpoint = find_checkpoint(args.model)
    _show(sanity(load_teacher(args.data), checkpoint, HiddenCache(args.run / "hidden")))


def _ship(run: Run, out: Path) -> None:
    card = run.ship(out)
    sys.stdout.write(f"{card.title} is in {out}\n")


def _reproduce(args: argparse.Namespace) -> None:
    run = Run(args.run)
    run.datasets(args.data)
    run.align(args.data)
    run.finetune(args.data)
    run.describe()
    for aspect in Aspect:
        run.fit(aspect)
        run.transfer(aspect)
    _ship(run, args.out)


def _show(found: dict) -> None:
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
