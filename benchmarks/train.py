"""Training's costs: the chunked loss of all heads against the straightforward one.

    python benchmarks/train.py [--repeats 3]

Writes benchmarks/results/train.json:

    loss/K=5            memory_vs_naive    most memory held above what stood before, ours over the straightforward version's
                        time_vs_naive      forward and backward, ours over the straightforward version's
                        memory_mib, naive_memory_mib, seconds, naive_seconds
    loss/K=5/kl         the same for the backbone's distribution as the target

5 heads, 8 rows of 1,024 tokens, a vocabulary of 32,000, width 512, three quarters of the positions supervised. The
straightforward version is what Medusa's training does: logits of every head at every position, stacked (K,B,T,V), then one
cross-entropy a head over those that count. Every measurement is a process of its own, so that its high-water mark is its
own too; the two take turns.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from common import result, write
from mhc.losses import Teacher, chunked_loss

K, B, T, D, V = 5, 8, 1024, 512, 32_000
SUPERVISED = 0.75


def stacked(hidden: list[Tensor], weight: Tensor, labels: Tensor, mask: Tensor, taught: Tensor | None) -> Tensor:
    """All logits at once (K,B,T,V), as Medusa's training makes them."""
    logits = torch.stack([h @ weight.T for h in hidden])
    loss = torch.zeros(())
    for head in range(K):
        if taught is None:
            loss = loss + cross_entropy(logits[head][mask], labels[mask])
        else:
            p = (taught @ weight.T).softmax(dim=-1)
            loss = loss + kl_div(logits[head][mask].log_softmax(dim=-1), p[mask], reduction="batchmean")
    return loss


def chunked(hidden: list[Tensor], weight: Tensor, labels: Tensor, mask: Tensor, taught: Tensor | None) -> Tensor:
    """As DraftModule does it."""
    loss = torch.zeros(())
    for h in hidden:
        teacher = None if taught is None else Teacher(taught[mask], weight)
        objective = "ce" if taught is None else "kl"
        loss = loss + chunked_loss(h[mask], (weight,), labels[mask], objective, teacher=teacher).loss
    return loss


def one(version: str, objective: str) -> dict[str, float]:
    """Seconds and MiB of one forward and backward, and the loss."""
    torch.manual_seed(0)
    hidden = [torch.randn(B, T, D).requires_grad_() for _ in range(K)]
    weight, labels = torch.randn(V, D) / D**0.5, torch.randint(0, V, (B, T))
    mask = torch.rand(B, T) < SUPERVISED
    taught = torch.randn(B, T, D) if objective == "kl" else None
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loss = {"stacked": stacked, "chunked": chunked}[version](hidden, weight, labels, mask, taught)
    loss.backward()
    seconds = time.perf_counter() - started
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "mib": held / 1024, "loss": loss.item(), "slope": hidden[0].grad.abs().sum().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("VERSION", "OBJECTIVE"), help="measure one in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one)))
        return
    results = []
    for objective, case in (("ce", f"loss/K={K}"), ("kl", f"loss/K={K}/kl")):
        found: dict[str, list[dict[str, float]]] = {"stacked": [], "chunked": []}
        for _ in range(options.repeats):
            for version, runs in found.items():
                told = subprocess.run(
                    [sys.executable, __file__, "--one", version, objective], capture_output=True, text=True, check=True
                )
                runs.append(json.loads(told.stdout))
        for naive, ours in zip(*found.values()):
            for same in ("loss", "slope"):
                assert abs(naive[same] - ours[same]) < 1e-4 * abs(naive[same]), f"the two differ in {same}"
        pairs = list(zip(found["chunked"], found["stacked"]))
        results += [
            result(case, "memory_vs_naive", [ours["mib"] / naive["mib"] for ours, naive in pairs]),
            result(case, "time_vs_naive", [ours["seconds"] / naive["seconds"] for ours, naive in pairs]),
            result(case, "memory_mib", [ours["mib"] for ours, _ in pairs]),
            result(case, "naive_memory_mib", [naive["mib"] for _, naive in pairs]),
            result(case, "seconds", [ours["seconds"] for ours, _ in pairs]),
            result(case, "naive_seconds", [naive["seconds"] for _, naive in pairs]),
        ]
    write("train", results, shape={"K": K, "B": B, "T": T, "D": D, "V": V, "supervised": SUPERVISED})


if __name__ == "__main__":
    main()
