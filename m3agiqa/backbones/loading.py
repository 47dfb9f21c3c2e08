"""Backbones by their names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from m3agiqa.backbones.base import Backbone
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import WeightsError

if TYPE_CHECKING:
    from m3agiqa.backbones.hf import HfBackbone
    from m3agiqa.backbones.minicpm import MiniCPMBackbone

BACKBONE_CLASSES = {"nano": NanoBackbone}


def backbone_class(name: str) -> type[NanoBackbone] | type[HfBackbone] | type[MiniCPMBackbone]:
    """The class of this name. Raises WeightsError for one that this version does not have.

    "hf:organisation/name" (or a folder instead) is the class for that model of the Hugging Face Hub; for "hf"
    alone, checkpoints have to say which model they are made of.
    """
    kind, _, model = name.partition(":")
    if kind == "hf":
        from m3agiqa.backbones.hf import HfBackbone  # the libraries behind it take a second to import

        return HfBackbone.of(model) if model else HfBackbone
    if name == "minicpm":
        from m3agiqa.backbones.minicpm import MiniCPMBackbone

        return MiniCPMBackbone
    if name not in BACKBONE_CLASSES:
        raise WeightsError(
            f"There is no backbone {name!r} in this version; there are {', '.join(BACKBONE_CLASSES)}, "
            "minicpm and hf:organisation/name."
        )
    return BACKBONE_CLASSES[name]


def load_backbone(
    name: str, folder: Path, progress: Progress | None = None, placement: Placement = AS_PUBLISHED
) -> Backbone:
    """The backbone of this name with the adapters of a checkpoint folder, for inference.

    Raises WeightsError for weights that are missing, damaged, or too large for the memory, and InputError
    for a placement that is not for this backbone.
    """
    kind = backbone_class(name)
    try:
        return kind.load(folder, progress, placement)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"The backbone {name} cannot be loaded: {error}") from error
