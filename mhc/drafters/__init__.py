"""Draft heads: one file a family, one interface (`base.Drafter`)."""

from mhc.drafters.base import Drafter
from mhc.drafters.cascade import Cascade
from mhc.drafters.medusa import Medusa

__all__ = ["Cascade", "Drafter", "Medusa"]
