"""Draft heads: one file a family, one interface (`base.Drafter`)."""

from mhc.drafters.base import Drafter
from mhc.drafters.cascade import Cascade
from mhc.drafters.diffusion import Diffusion
from mhc.drafters.eagle3 import Eagle3
from mhc.drafters.medusa import Medusa

__all__ = ["Cascade", "Diffusion", "Drafter", "Eagle3", "Medusa"]
