"""M3-AGIQA: judge AI-generated images by quality, correspondence with the prompt, and authenticity."""

from typing import TYPE_CHECKING, Any

from m3agiqa import library_logs  # noqa: F401 before any library is imported
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.assessment import AspectResult, Assessment, DescriptionDelta
from m3agiqa.errors import InputError, M3AgiqaError, Stopped, WeightsError
from m3agiqa.quality_map import QualityMap
from m3agiqa.ranking import Ranking

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor

__all__ = [
    "Aspect",
    "AspectResult",
    "Assessment",
    "Assessor",
    "DescriptionDelta",
    "InputError",
    "M3AgiqaError",
    "MosScale",
    "QualityMap",
    "Ranking",
    "Rating",
    "Stopped",
    "WeightsError",
]

__version__ = "0.4.2"  # also that of the shipped checkpoint


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """`Assessor` is imported when it is first used, as PyTorch and transformers take seconds."""
    if name == "Assessor":
        from m3agiqa.assessor import Assessor

        return Assessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
