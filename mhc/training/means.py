"""Means over an epoch of what steps report."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torchmetrics import MeanMetric

Figures = dict[str, tuple[Tensor, int]]  # each a mean, and the number of things that it is a mean over


class Means(nn.Module):
    """The mean of each named figure since it was computed last, over all processes."""

    def __init__(self, names: Iterable[str]):
        super().__init__()
        # NaN stays NaN (torchmetrics' "disable" would leave the weights out)
        self._named = {name: MeanMetric(nan_strategy=float("nan")) for name in names}
        self._metrics = nn.ModuleList(self._named.values())

    def update(self, figures: Mapping[str, tuple[Tensor, int]]) -> None:
        for name, (value, count) in figures.items():
            self._named[name].update(value, count)

    def compute(self) -> dict[str, tuple[Tensor, bool]]:
        """By name the mean, and whether there was anything (on this process) that it is a mean over; then a fresh start."""
        means = {}
        for name, metric in self._named.items():
            if metric.update_called:
                means[name] = metric.compute(), bool(metric.weight)
            metric.reset()
        return means
