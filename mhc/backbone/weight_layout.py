"""Weight layouts: for a tree's handful of rows on a CPU, or quantised.

A matrix product of 2 to 30 rows should cost no more than reading the weights. With PyTorch's own layout
(output-major) the BLAS rearranges them at every call. Which layout is faster depends on the CPU vendor, since
MKL uses its best kernels on Intel's only (all linear layers of the pocket, 34 MB; docs/log.md):

    rows                            1      2      8     12     32
    AMD EPYC, as they are        1.92   2.46   2.86   2.96   6.23 ms
    AMD EPYC, input-major        1.48   1.65   2.91   2.92   5.80
    AMD EPYC, packed by oneDNN   0.87   0.94   1.16   1.28   2.10
    Intel Xeon, as they are      0.72          1.53
    Intel Xeon, input-major      0.77          1.00
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mhc.errors import UserError


class PackedLinear(nn.Module):
    """A frozen fp32 linear layer on oneDNN's packed weights, for inference.

    original: the unpacked weight where others need it too (a tied lm_head); without, `weight` is unpacked at every
    access.
    """

    def __init__(self, linear: nn.Linear, original: Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.bias, self.original = linear.bias, original
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense() if self.original is None else self.original

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, "none", [], "")


@lru_cache(maxsize=1)
def packs() -> bool:
    """Whether oneDNN's packed weights are available and the better choice on this processor."""
    try:
        vendor = next(
            line
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("vendor_id")
        )
    except (OSError, StopIteration):
        return False
    return "AMD" in vendor and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def lay_out_for_few_rows(model: nn.Module, tied: Tensor | None = None) -> None:
    """Rearrange the fp32 linear layers of a frozen model on a CPU, in place. `tied`: a weight that the embedding
    shares; rows are looked up in it, so it stays as it is (a packed copy is added)."""
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter:  # quantised ones stay
                continue
            if (linear.weight.dtype, linear.weight.device.type) != (torch.float32, "cpu"):
                continue
            shared = tied is not None and linear.weight.data_ptr() == tied.data_ptr()
            if packs():
                setattr(parent, name, PackedLinear(linear, linear.weight if shared else None))
            elif not shared:
                linear.weight.data = linear.weight.data.t().contiguous().t()


def unpack(model: nn.Module) -> None:
    """Undo the packing, in place: torch.compile lowers plain linear layers only."""
    for parent in list(model.modules()):
        for name, packed in list(parent.named_children()):
            if isinstance(packed, PackedLinear):
                linear = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None, device="meta")
                linear.weight = (
                    nn.Parameter(packed.weight, requires_grad=False) if packed.original is None else packed.original
                )
                linear.bias = packed.bias
                setattr(parent, name, linear)


class Quantised(NamedTuple):
    """How a model's weights were quantised: 'int8' or 'int4', and their bytes before and after."""

    kind: str
    before: int
    after: int

    def __str__(self) -> str:
        share = 1 - self.after / self.before
        return f"{self.kind} weights take {_size(self.after)} instead of {_size(self.before)}: {share:.0%} saved"


def quantize_weights(model: PreTrainedModel, kind: str) -> Quantised:
    """Store the linear layers' weights in 8 or 4 bits (torchao, weight only), in place; the lm_head stays, since
    draft heads share it. The text is then the quantised model's own, with draft heads or without."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError(f"quantising to {kind} needs torchao: pip install -e '.[quantize]'") from error
    if kind not in ("int8", "int4"):
        raise UserError(f"unknown quantisation '{kind}': choose int8 or int4")
    chosen = Int8WeightOnlyConfig() if kind == "int8" else IntxWeightOnlyConfig(weight_dtype=torch.int4)  # type: ignore[attr-defined]  # torch's stubs lack it
    lm_head, before = model.get_output_embeddings(), stored_bytes(model)
    quantize_(model, chosen, filter_fn=lambda module, _: isinstance(module, nn.Linear) and module is not lm_head)
    return Quantised(kind, before, stored_bytes(model))


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights in memory, tied ones once, quantised ones with their scales."""
    return sum(map(_bytes_of, model.parameters()))


def _bytes_of(tensor: Tensor) -> int:
    """A tensor's bytes; of a tensor made of others (torchao's) the sum of theirs."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes_of(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.itemsize


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
