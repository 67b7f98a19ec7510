"""Noise schedules of masked discrete diffusion: how much of a block is masked at time t, 0 (clean) to 1 (all).

alpha(t) is the probability that a token is *not* masked. The continuous-time bound weighs the cross-entropy of the
masked tokens with -alpha'(t) / (1 - alpha(t)).

    linear   alpha(t) = 1 - t, weight 1/t: MDLM (arXiv 2406.07524), LLaDA (2502.09992)
    kappa    alpha(t) = kappa(1-t), weight kappa'(1-t) / (1 - kappa(1-t)), with the cubic
             kappa(s) = (a+1) s^3 - (a+b+1) s^2 + (b+1) s at a = b = 1: discrete flow matching (2407.15595), where
             s = 1 - t runs from noise to text. a = -1, b = 0 is the linear schedule.
"""

from torch import Tensor

COEFFICIENTS = {"linear": (-1.0, 0.0), "kappa": (1.0, 1.0)}  # a, b


def alpha(schedule: str, t: Tensor) -> Tensor:
    """The probability that a token is not masked at times t."""
    (a, b), s = COEFFICIENTS[schedule], 1 - t
    return (a + 1) * s**3 - (a + b + 1) * s**2 + (b + 1) * s


def weight(schedule: str, t: Tensor) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)), for t above 0."""
    (a, b), s = COEFFICIENTS[schedule], 1 - t
    slope = 3 * (a + 1) * s**2 - 2 * (a + b + 1) * s + (b + 1)
    return slope / (1 - alpha(schedule, t))
