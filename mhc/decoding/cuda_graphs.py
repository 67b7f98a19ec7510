"""CUDA graphs of whole rounds: hundreds of small kernels replayed by one launch.

A round reads and writes buffers at fixed addresses; only their contents differ from round to round (lengths, tokens,
seeds). So a round recorded once can be replayed as long as its shapes are the same: one graph per extent of the cache
and kind of sampling.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhc.errors import UserError


class Graphs:
    """Recorded rounds by key. They share a memory pool, since rounds never overlap."""

    def __init__(self) -> None:
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, key: Any) -> bool:
        return key in self._recorded

    def record(self, key: Any, step: Callable[[], Tensor]) -> None:
        """Run `step` a few times on a side stream, as CUDA graphs require, then record it. It leaves garbage in the
        buffers: record before they hold anything.

        Raises UserError for a backbone whose forward synchronises with the host (some mixtures of experts do).
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                for _ in range(3):  # compiles, fills caches of index tensors, lets libraries select kernels
                    step()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, pool=self._pool):
                result = step()
        except RuntimeError as error:
            raise UserError(
                f"this model's rounds cannot be captured ({str(error).splitlines()[0]}): decode without --compile"
            ) from error
        self._recorded[key] = graph, result

    def replay(self, key: Any) -> Tensor:
        """What the recorded round returns now; valid until the next replay."""
        graph, result = self._recorded[key]
        graph.replay()
        return result
