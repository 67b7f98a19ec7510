"""Training's costs: the chunked loss of all heads against the straightforward one.

    python benchmarks/train.py [--repeats 3] [--only loss|step|scaling]

Writes benchmarks/results/train.json (with --only, those cases of it; the others stay):

    loss/K=5            memory_vs_naive    peak memory above that before, ours over the straightforward version's
                        time_vs_naive      forward and backward, ours over the straightforward version's
                        memory_mib, naive_memory_mib, seconds, naive_seconds
    loss/K=5/kl         the same for the backbone's distribution as the target
    step/cpu            time_vs_frozen_forward     a whole step of 5 MHC heads that share the frozen lm_head, over the
                                                   frozen forward alone; medians of interleaved pairs
                        time_vs_frozen_forward_trained_lm_heads    the same with a trained lm_head copy per head
                        frozen_forward_ms, step_ms, tokens_per_second, peak_gib (of the process); *_trained_lm_heads
    scaling/ddp         tokens_per_second_2_vs_1   two processes (DDP, gloo) over one, one thread and the same rows each
    packing             with --packing FILE: an epoch's frozen forward and loss over its conversations, rows of 2,048
                        speedup_vs_padded          packed, over rows padded to 2,048
                        speedup_vs_longest         packed, over batches in random order padded to their longest row
                        speedup_vs_grouped         packed, over batches of about one length (what pack: false does)
                        real_token_share           of the packed positions; and of the other three
                        loss_difference            largest difference of an epoch's mean loss among the four

5 heads, 8 rows of 1,024 tokens, a vocabulary of 32,000, width 512, three quarters of the positions supervised. The
straightforward version is that of Medusa's training: logits of every head at every position, stacked (K,B,T,V), then one
cross-entropy per head over the supervised ones. Every measurement is a process of its own, because of its peak memory; the
two are interleaved.

The step is measured on a random Llama of 214 M parameters in fp32, whose vocabulary is so small that all heads' losses take
a fifth of the forward's products, as they do at 7B with 32,000 tokens.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoConfig, AutoModelForCausalLM

from common import RESULTS, result, show, timed
from datamodules import ConversationData
from datamodules.batching import PackedRows, batch_order, collate
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade
from mhc.training.draft_module import DraftModule
from mhc.training.losses import Teacher, chunked_loss
from mhc.util.files import write_json
from mhc.util.provenance import machine, versions
from train_step import scaling, step_costs, worker

K, B, T, D, V = 5, 8, 1024, 512, 32_000
SUPERVISED = 0.75
STEP = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16}
STEP |= {"num_key_value_heads": 16, "vocab_size": 4096}
STEP_ROWS, STEP_LENGTH = 2, 512
ROW, PACKED = 2048, 2  # tokens of a packed row, and packed rows in a batch


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


def measure_one(version: str, objective: str) -> dict[str, float]:
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


def packing(path: str, count: int, repeats: int) -> None:
    """The same conversations in four layouts, interleaved; train.json's other cases stay."""
    backbone_rows, module = _conversations(path, count)
    layouts = _layouts(backbone_rows)
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    losses, shares = {}, {}
    for repeat in range(repeats + 1):
        for name, batches in layouts.items():
            spent, (losses[name], shares[name]) = timed(lambda batches=batches: _epoch(module, batches))
            if repeat:  # the first pass warms up
                seconds[name].append(spent)
    worst = max(losses.values()) - min(losses.values())
    assert worst < 1e-4, f"the layouts differ in their loss: {losses}"
    results = [
        result("packing", f"speedup_vs_{other}", [a / b for a, b in zip(seconds[other], seconds["packed"])])
        for other in ("padded", "longest", "grouped")
    ]
    results += [result("packing", "real_token_share", [shares["packed"]])]
    results += [
        result("packing", f"real_token_share_{other}", [shares[other]]) for other in ("padded", "longest", "grouped")
    ]
    results.append(result("packing", "loss_difference", [worst]))
    settings = {"data": Path(path).name, "conversations": len(backbone_rows), "rows": ROW}
    save(results, packing=settings | {"machine": machine(), "versions": versions()})


def _conversations(path: str, count: int):
    """Encoded conversations, and a module that trains MHC heads on the pocket."""
    data = ConversationData(path, max_length=ROW, limit=count)
    module = DraftModule(lambda backbone: Cascade(backbone, heads=K), "pocket")
    data.tokenizer = module.tokenizer
    return data.rows("train"), module


def _layouts(rows) -> dict[str, list[dict[str, Tensor]]]:
    """The batches of an epoch: packed and padded rows of ROW tokens, PACKED of them at a time."""
    lengths, shuffled = rows.lengths, torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    packed = PackedRows(rows, lengths, ROW, seed=0)
    several = max(1, PACKED * len(rows) // len(packed))  # as many conversations in a batch as are packed into one
    random = [shuffled[i : i + several] for i in range(0, len(shuffled), several)]
    longest = [collate([rows[i] for i in batch], 0) for batch in random]
    padded = [
        collate([rows[i] for i in batch], 0)
        for batch in (shuffled[i : i + PACKED] for i in range(0, len(rows), PACKED))
    ]
    for batch in padded:
        missing = ROW - batch["ids"].shape[1]
        batch.update({name: torch.nn.functional.pad(part, (0, missing)) for name, part in batch.items()})
    return {
        "packed": [
            collate([packed[i] for i in range(start, min(start + PACKED, len(packed)))], 0)
            for start in range(0, len(packed), PACKED)
        ],
        "padded": padded,
        "longest": longest,
        "grouped": [collate([rows[i] for i in batch], 0) for batch in batch_order(lengths, several, 0, 0)],
    }


def _epoch(module, batches: list[dict[str, Tensor]]) -> tuple[float, float]:
    """Forward and backward over all batches: the first head's mean loss over all anchors, and the share of real tokens."""
    total, anchors, real, positions = 0.0, 0, 0, 0
    for batch in batches:
        loss, figures = module.losses(**batch)
        loss.backward()
        module.drafter.zero_grad()
        value, count = figures["head0_loss"]
        total, anchors = total + value.item() * count, anchors + count
        positions += batch["ids"].numel()
        real += int((batch["segments"] >= 0).sum()) if "segments" in batch else int((batch["ids"] != 0).sum())
    return total / anchors, real / positions


def losses(repeats: int) -> list[dict[str, Any]]:
    """The cases loss/..."""
    results = []
    for objective, case in (("ce", f"loss/K={K}"), ("kl", f"loss/K={K}/kl")):
        measured: dict[str, list[dict[str, float]]] = {"stacked": [], "chunked": []}
        for _ in range(repeats):
            for version, runs in measured.items():
                output = subprocess.run(
                    [sys.executable, __file__, "--one", version, objective],
                    capture_output=True,
                    encoding="utf-8",
                    check=True,
                )
                runs.append(json.loads(output.stdout))
        for naive, ours in zip(*measured.values()):
            for key in ("loss", "slope"):
                assert abs(naive[key] - ours[key]) < 1e-4 * abs(naive[key]), f"the two differ in {key}"
        pairs = list(zip(measured["chunked"], measured["stacked"]))
        results += [
            result(case, "memory_vs_naive", [ours["mib"] / naive["mib"] for ours, naive in pairs]),
            result(case, "time_vs_naive", [ours["seconds"] / naive["seconds"] for ours, naive in pairs]),
            result(case, "memory_mib", [ours["mib"] for ours, _ in pairs]),
            result(case, "naive_memory_mib", [naive["mib"] for _, naive in pairs]),
            result(case, "seconds", [ours["seconds"] for ours, _ in pairs]),
            result(case, "naive_seconds", [naive["seconds"] for _, naive in pairs]),
        ]
    return results


def step(repeats: int) -> list[dict[str, Any]]:
    """The case step/cpu."""
    torch.manual_seed(0)
    backbone = Backbone(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **STEP), dtype=torch.float32))
    costs = step_costs(backbone, STEP_ROWS, STEP_LENGTH, repeats)
    return [result("step/cpu", metric, values) for metric, values in costs.items()]


def save(results: list[dict[str, Any]], **extra: Any) -> None:
    """Write these results to train.json in place of earlier ones of the same cases."""
    path, cases = RESULTS / "train.json", {row["case"] for row in results}
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"results": []}
    saved |= {"machine": machine(), "versions": versions(), **extra}
    saved["results"] = [row for row in saved["results"] if row["case"] not in cases] + results
    write_json(path, saved)
    show(results)


PARTS = {"loss": losses, "step": step, "scaling": lambda repeats: scaling(rounds=repeats)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, help="measure only these cases")
    parser.add_argument("--one", nargs=2, metavar=("VERSION", "OBJECTIVE"), help="measure one in this process")
    parser.add_argument("--worker", nargs=3, type=int, metavar="N", help="train in this process: rows, length, steps")
    parser.add_argument("--packing", metavar="FILE", help="measure packing over these conversations, and only that")
    parser.add_argument("--conversations", type=int, default=128, help="how many of them (default 128)")
    options = parser.parse_args()
    if options.packing:
        packing(options.packing, options.conversations, options.repeats)
        return
    if options.one:
        print(json.dumps(measure_one(*options.one)))
        return
    if options.worker:
        worker(*options.worker)
        return
    shape = {"K": K, "B": B, "T": T, "D": D, "V": V, "supervised": SUPERVISED}
    for name in [options.only] if options.only else PARTS:
        save(PARTS[name](options.repeats), shape=shape, step={**STEP, "B": STEP_ROWS, "T": STEP_LENGTH})


if __name__ == "__main__":
    main()
