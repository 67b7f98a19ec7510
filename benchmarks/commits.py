"""Two checkouts of this project, the same heads and prompts, interleaved prompt by prompt: did a change cost speed?

    git clone -q . /tmp/before && git -C /tmp/before checkout -q COMMIT
    python benchmarks/commits.py /tmp/before --checkpoint runs/quickstart/cascade

Each checkout decodes in a process of its own, and they take turns at every prompt, so that the machine's drift hits both
alike. Writes benchmarks/results/commits.json: for each way of decoding `time_vs_before`, the median over prompts of paired
ratios (below 1: faster now) with quartiles. Every text is compared; a difference ends the benchmark. Uses only what both
checkouts have: Engine.from_checkpoint and generate_ids.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

WAYS: dict[str, dict[str, Any]] = {  # how prompts are decoded
    "plain/T=0": {"plain": True},
    "heads/T=0": {},
    "plain/T=0.8": {"plain": True, "temperature": 0.8},
    "heads/T=0.8": {"temperature": 0.8},
    "heads/T=0/batch=8": {"batch_size": 8},
    "heads/T=0.8/batch=8": {"batch_size": 8, "temperature": 0.8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="the other checkout")
    parser.add_argument("--checkpoint", required=True, help="heads that both can load")
    parser.add_argument("--answers", help="answers.jsonl whose prompts are decoded (default: beside the heads)")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # one of the two processes
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    from common import result, write  # imports this checkout's code, which a process of the other must not

    prompts = prompts_of(options)
    checkouts = {"before": start(options.before, options), "now": start(str(ROOT), options)}
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(-1, len(prompts)):  # the first prompt twice: once to warm up
        for way, settings in WAYS.items():
            batch = settings.get("batch_size", 1)
            chosen = [prompts[(max(number, 0) + step) % len(prompts)] for step in range(batch)]
            order = list(checkouts) if number % 2 else list(reversed(checkouts))
            answers = {name: ask(checkouts[name], {"prompts": chosen, **settings}) for name in order}
            if answers["before"]["texts"] != answers["now"]["texts"]:
                raise SystemExit(f"{way}, prompt {number}: the texts differ")
            if number >= 0:
                ratios[way].append(answers["now"]["seconds"] / answers["before"]["seconds"])
        print(f"\r{number + 1}/{len(prompts)}", end="", file=sys.stderr)
    results = [result(way, "time_vs_before", values, quartiles=True) for way, values in ratios.items()]
    commits = {name: commit_of(folder) for name, folder in (("before", options.before), ("now", str(ROOT)))}
    write("commits", results, Path(options.out), commits=commits)


def prompts_of(options: argparse.Namespace) -> list[list[int]]:
    """Token ids of held-out prompts."""
    from datamodules import ConversationData
    from mhc.engine import Engine

    data = ConversationData(options.answers or str(Path(options.checkpoint).parent / "answers.jsonl"))
    data.tokenizer = Engine.from_checkpoint(options.checkpoint).backbone.tokenizer
    return [prompt.ids for prompt in data.prompts("test", options.prompts)]


def start(checkout: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that decodes with the code of this checkout."""
    script = [sys.executable, str(Path(__file__).resolve()), checkout, "--serve"]
    script += ["--checkpoint", str(Path(options.checkpoint).resolve()), "--new", str(options.new)]
    return subprocess.Popen(script, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def ask(process: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    """Have a process decode."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a checkout failed: see above")
    return json.loads(line)


def serve(options: argparse.Namespace) -> None:
    """Decode what comes on standard input, with the checkout's own code."""
    sys.path.insert(0, options.before)
    from mhc.engine import Engine
    from mhc.sampling import Sampling

    engine = Engine.from_checkpoint(options.checkpoint)
    assert Path(sys.modules["mhc"].__file__ or "").is_relative_to(options.before)
    for line in sys.stdin:
        request = json.loads(line)
        drawn = Sampling(temperature=request.get("temperature", 0.0), seed=7)
        began = time.perf_counter()
        answers = dict(
            engine.generate_ids(
                request["prompts"],
                options.new,
                request.get("batch_size", 1),
                request.get("plain", False),
                sampling=drawn,
            )
        )
        seconds = time.perf_counter() - began
        texts = [answers[number].token_ids for number in sorted(answers)]
        print(json.dumps({"texts": texts, "seconds": seconds}), flush=True)


def commit_of(folder: str) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8").stdout.strip()


if __name__ == "__main__":
    main()
