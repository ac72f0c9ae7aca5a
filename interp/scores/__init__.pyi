from .average_precision import Precision
from .choosers import Measured, measured
from .methods import METHODS, Method, Settings
from .sharing import categories_from_caches, chance_of_categories
from .sharing_profile import SharingProfile
from .token_sharing import TokenSharing, kept_over_tokens, sharing_over_tokens

__all__ = [
    "METHODS",
    "Measured",
    "Method",
    "Precision",
    "Settings",
    "SharingProfile",
    "TokenSharing",
    "categories_from_caches",
    "chance_of_categories",
    "kept_over_tokens",
    "measured",
    "sharing_over_tokens",
]
