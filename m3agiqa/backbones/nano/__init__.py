"""nano: the default backbone, small enough for two CPU cores."""

from m3agiqa.backbones.nano.image_encoder import CONNECTOR_FILE, PROMPT_ALIGNERS_FILE, QUALITY_ENCODER_FILE
from m3agiqa.backbones.nano.model import ADAPTER_FOLDER, NanoBackbone

__all__ = ["ADAPTER_FOLDER", "CONNECTOR_FILE", "PROMPT_ALIGNERS_FILE", "QUALITY_ENCODER_FILE", "NanoBackbone"]
