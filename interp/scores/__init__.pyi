from .average_precision import Precision
from .choosers import Measured, measured
from .heads import head_importance
from .methods import METHODS, Method, Settings
from .routing import Routing, routing_of
from .sharing import categories_from_caches, chance_of_categories
from .sharing_profile import SharingProfile
from .token_sharing import TokenSharing, kept_over_tokens, sharing_over_tokens

__all__ = [
    "METHODS",
    "Measured",
    "Method",
    "Precision",
    "Routing",
    "Settings",
    "SharingProfile",
    "TokenSharing",
    "categories_from_caches",
    "chance_of_categories",
    "head_importance",
    "kept_over_tokens",
    "measured",
    "routing_of",
    "sharing_over_tokens",
]
