"""Training in processes that can be killed, forked from one that has imported everything already."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from training.__main__ import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["training.__main__"])


def start_training(*arguments: str) -> BaseProcess:
    """`python -m training` with these arguments."""
    return start(_training, list(arguments))


def start(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """A function with its arguments, in an environment as it is now."""
    process = FORKS.Process(target=_in_environment, args=(dict(os.environ), target, *arguments))
    process.start()
    return process


def _training(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def _in_environment(environment: dict[str, str], target: Callable[..., object], *arguments: object) -> None:
    os.environ.clear()  # of what was set when the first of them was started
    os.environ.update(environment)
    target(*arguments)
