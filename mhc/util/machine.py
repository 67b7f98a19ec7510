"""How fast this machine computes."""

import time

import torch

ASSUMED_GPU_SPEED = 1e14  # operations a second of a GPU that is not present: a third of an A100's data sheet in bf16


def product_speed(on_gpu: bool, dtype: torch.dtype) -> tuple[float, str]:
    """Floating-point operations a second of a large matrix product, and how that is known. Without a GPU at hand, the
    speed of one is an assumption."""
    if on_gpu and not torch.cuda.is_available():
        return ASSUMED_GPU_SPEED, "(no GPU is present: an assumption)"
    device, size = ("cuda", 8192) if on_gpu else ("cpu", 1024)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        (left @ right).sum().item()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds), f"measured here in {str(dtype).rpartition('.')[2]}"
