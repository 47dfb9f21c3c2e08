"""MiniCPM-Llama3-V 2.5, natively; see `backbone.MiniCPMBackbone`."""

from m3agiqa.backbones.minicpm.backbone import MiniCPMBackbone

__all__ = ["MiniCPMBackbone"]
