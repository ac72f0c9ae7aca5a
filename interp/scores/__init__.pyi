from .average_precision import Precision
from .sharing_profile import SharingProfile
from .token_sharing import TokenSharing, kept_over_tokens, sharing_over_tokens

__all__ = ["Precision", "SharingProfile", "TokenSharing", "kept_over_tokens", "sharing_over_tokens"]
