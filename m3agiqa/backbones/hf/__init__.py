"""hf: any image-text-to-text model of transformers, by its name on the Hugging Face Hub or its folder."""

from m3agiqa.backbones.hf.backbone import HfBackbone

__all__ = ["HfBackbone"]
