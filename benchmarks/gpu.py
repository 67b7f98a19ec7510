"""Costs and gains of drafting on a GPU, where reading weights and launching kernels dominate.

    python benchmarks/gpu.py [--shape 7b|tiny] [--minutes 4] [--device cuda] [--data PATH ...] [--out DIR]

Under 8 minutes in all; writes <DIR>/gpu.json (default benchmarks/results) after every part. A part that fails is
listed under "failed" and the others still run. Without a GPU the file says that nothing was measured; `--device cpu`
runs everything all the same. Values are medians, low and high the extremes.

1. A Llama of 7B's shape (or `tiny`), random weights in bf16, 512 tokens of context, 4 untrained heads. Whatever is
   timed is compiled and captured as a CUDA graph unless it is called eager, and interleaved with all the others.

    7b/plain            step_ms, step_ms_eager             one plain step, host synchronisation included
                        bandwidth_floor_ms                 time to read the weights and the KV cache of one token once,
                                                           by the data sheet of known GPUs, else as measured
                        share_of_bandwidth_floor           that floor over step_ms: 1 is as fast as memory allows
                        share_of_measured_bandwidth        the same by the bandwidth of a copy in this run
    7b/verify           t_verify_N_ms, t_verify_N_vs_plain a round of N nodes without its drafting
    7b/<family>/64      draft_ms, verify_ms, round_ms      growing a tree of 64 nodes; the rest; a whole round
    7b/<family>/dynamic64                                  (a fixed tree, and one that follows the probabilities)
                        round_ms_eager                     the round neither compiled nor captured
                        round_vs_plain_step                round_ms over step_ms: tokens a step needed to break even
                        round_vs_parts                     round_ms over draft_ms + verify_ms
                        tokens_until_first_difference      captured against eager, greedy, of 64, heads trained on
                                                           just that text so that there is something to accept
                        difference_within_tolerance        1: no difference, or the two likeliest tokens were closer
                                                           there than logit_tolerance, the largest difference between
                                                           logits of a tree and of one-token forwards
                        tokens_per_step                    of that text: that drafts were accepted at all
    7b/memory           peak_gib_plain                     peak memory: the model and one plain decoder
                        peak_gib                           all engines of part 1 side by side
                        cache_mib_formula                  2 * layers * rows * heads * capacity * width * 2 bytes
                        cache_mib_measured                 memory that allocating such a cache took

    step/7b             time_vs_frozen_forward             a training step of 5 MHC heads (8 rows of 1,024 tokens, shared
                                                           frozen lm_head) over the frozen forward alone, interleaved
                        time_vs_frozen_forward_trained_lm_heads
                        frozen_forward_ms, step_ms, tokens_per_second, peak_gib, and *_trained_lm_heads of the last three

2. A backbone of some 50 M parameters trained here for --minutes, heads for a quarter of that each, and held-out
   prompts decoded plainly and with heads, fp32. (Shorter where part 1 has taken too long.)

    trained/backbone        parameters_millions, steps, validation_loss
    trained/<family>/T=0    tokens_per_step, identical (share of the prompts), speedup_vs_plain (low and high are
                            quartiles), tokens_per_second, plain_tokens_per_second, head<k>_top1 (on held-out text)
    trained/<family>/T=1    the same, drawn with seed 0
"""

import argparse
import gc
from pathlib import Path

import torch

from common import RESULTS, ROOT, save, write
from gpu_common import Report, Size
from gpu_shape import measure_shape, random_backbone


def llama(width: int, inner: int, layers: int, heads: int, vocabulary: int, context: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
    }


TIED = {"model_type": "llama", "tie_word_embeddings": True}
SIZES = {
    "7b": Size(
        random=llama(4096, 11008, 32, 32, 32000, 4096),
        trained=llama(640, 1728, 10, 10, 8192, 1024) | TIED,
        repeats=30,
        step=(8, 1024),
        copied=4 << 30,
        conversations=40_000,
        batch=64,
        length=512,
        prompts=30,
        new=128,
    ),
    "tiny": Size(
        random=llama(64, 128, 2, 4, 512, 4096),
        trained=llama(64, 128, 2, 4, 512, 512) | TIED,
        repeats=3,
        step=(2, 32),
        copied=4 << 20,
        conversations=1000,
        batch=4,
        length=64,
        prompts=3,
        new=8,
    ),
}


def find_data(paths: list[str] | None) -> list[str]:
    """The conversations to train on: those given, else those of shared/data, else the generated ones of the pocket."""
    if paths:
        return paths
    for shared in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data"):
        if folders := [str(shared / name) for name in ("alpaca", "sgd") if (shared / name).is_dir()]:
            return folders
    return ["pocket"]


def free_memory(device: torch.device) -> None:
    """Free the memory of the last model."""
    torch.compiler.reset()
    gc.collect()  # there are reference cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SIZES, default="7b", help="all sizes: 7b, or tiny to try the script")
    parser.add_argument("--minutes", type=float, default=4.0, help="training of part 2's backbone (default 4)")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="files or folders of conversations")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where gpu.json goes")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "this machine has no CUDA device"
        path = save("gpu", [], options.out, gpu=None, measured=False, why=reason)
        print(f"nothing measured, {reason}: {path}")
        return
    paths = find_data(options.data)
    if missing := [path for path in paths if path != "pocket" and not Path(path).exists()]:
        parser.error(f"no such data: {', '.join(missing)}")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    report = Report(options.out, gpu=gpu, measured=True, shape=options.shape)
    size = SIZES[options.shape]
    measure_shape(report, options.shape, size, device)
    free_memory(device)
    from gpu_trained import train_and_decode  # late: part 1 does not need Lightning
    from train_step import step_costs

    with report.part(f"step/{options.shape}"):
        costs = step_costs(random_backbone(size, device), *size.step, size.repeats)
        report.add(f"step/{options.shape}", **costs)
    free_memory(device)
    train_and_decode(report, size, paths, options.minutes, device)
    write("gpu", report.results, options.out, **report.everything)
    report.log(f"done, {len(report.failed)} parts failed")


if __name__ == "__main__":
    main()
