from .caches import fires, firing_rate, gradients_at, units_at
from .head_effects import HeadEffects
from .histograms import Histograms
from .loss_effects import LossEffects
from .negative_side import NegativeSide
from .plan import RunPlan, plan_run
from .sign_cases import SignCases
from .top_contexts import TopContexts, gates_around
from .unit_moments import UnitMoments

__all__ = [
    "HeadEffects",
    "Histograms",
    "LossEffects",
    "NegativeSide",
    "RunPlan",
    "SignCases",
    "TopContexts",
    "UnitMoments",
    "fires",
    "firing_rate",
    "gates_around",
    "gradients_at",
    "plan_run",
    "units_at",
]
