"""Command line of the stages: `python -m training STAGE --run DIR …`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint import SHIPPED, find_checkpoint
from m3agiqa.errors import M3AgiqaError
from training.datasets import load_teacher
from training.hidden_cache import HiddenCache
from training.run import Run
from training.sanity import sanity


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
    everything = stage(
        "reproduce-nano", _reproduce, "all stages, from base weights to shipped files", data=True
    )
    everything.add_argument("--out", type=Path, default=SHIPPED / "nano", help="folder of the checkpoint")
    shipping = stage("ship", lambda a: _ship(Run(a.run), a.out), "put a run's checkpoint together")
    shipping.add_argument("--out", type=Path, default=SHIPPED / "nano", help="folder of the checkpoint")
    return parser


def _fit(args: argparse.Namespace) -> None:
    for aspect in args.aspect or Aspect:
        Run(args.run).fit(aspect)


def _transfer(args: argparse.Namespace) -> None:
    for aspect in args.aspect or Aspect:
        Run(args.run).transfer(aspect)
    _show(Run(args.run).transferred())


def _sanity(args: argparse.Namespace) -> None:
    checkpoint = find_checkpoint(args.model)
    _show(sanity(load_teacher(args.data), checkpoint, HiddenCache(args.run / "hidden")))


def _ship(run: Run, out: Path) -> None:
    card = run.ship(out)
    sys.stdout.write(f"{card.title} is in {out}\n")


def _reproduce(args: argparse.Namespace) -> None:
    run = Run(args.run)
    run.datasets(args.data)
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
