"""Where a result comes from: settings, code and data."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import fingerprint
from training.settings import plain

if TYPE_CHECKING:
    from training.run import Run


def provenance(run: Run) -> dict[str, str]:
    """Facts for a report, by name."""
    config = run.config
    return {
        "run": run.folder.name,
        "backbone": f"{config.backbone}, {'fine-tuned here' if config.finetune else 'as it came'}",
        **({} if run.served is None else {"descriptions": f"by {run.served.model} on a server"}),
        "data": f"{config.data.format}, {len(run.samples):,} samples",
        "data fingerprint": fingerprint(run.samples),
        **_annotations(run),
        "split": json.dumps(plain(config.data.split)),
        "best epoch and seed chosen on": config.select_on,
        "predictor": json.dumps(plain(config.fit)),
        "seeds": ", ".join(map(str, config.seeds)),
        "git revision": git_revision(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _annotations(run: Run) -> dict[str, str]:
    if run.annotated is None:
        return {}
    return {"annotations": f"{run.annotated.version}, {len(run.annotated.scored):,} samples scored by people"}


def git_revision() -> str:
    """Of the code that runs, with "-dirty" where it has uncommitted changes; "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()
