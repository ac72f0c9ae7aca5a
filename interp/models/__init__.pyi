from .load import outline
from .units import Address, LayerUnits, UnitLayout

__all__ = ["Address", "LayerUnits", "UnitLayout", "outline"]
