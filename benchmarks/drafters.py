"""The four families on the same backbone, data and budget, as `run.py compare` trains and measures them.

    python benchmarks/drafters.py [--comparisons runs/compare runs/compare-sgd] [--scaling 500 2000 8000 all]

In a folder without a comparison, `run.py compare --out` makes one on the pocket; for other backbones run it first, with
--backbone and --data.

Writes benchmarks/results/drafters.json. A case is a family; on a second, third ... backbone <family>/<folder's name>:

    tokens_per_step            a chain of all heads at T=0, bonus counted
    tokens_per_step_vs_medusa  over Medusa's
    predicted_vs_real          predicted from the training forward, over real decoding of the same prompts
    draft_ms                   growing the chain and observing the accepted tokens
    speedup_vs_plain           the tuned tree at T=0: median over prompts of paired ratios, low and high their quartiles
    tokens_per_step_T1, speedup_vs_plain_T1, training_seconds, parameters

With --scaling also <family>/samples=<n>, tokens_per_step: heads trained for the same number of steps on <n> conversations of
the first comparison's data (runs in <comparison>/scaling are not trained again). The file also holds the whole
comparisons.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from common import result, write
from datamodules import ConversationData
from mhc.checkpoints.heads_folder import DESCRIPTION, for_decoding, load_drafter
from mhc.commands.compare import RESULT
from mhc.commands.stages import best_trainer, run_stage, training
from mhc.engine import Engine
from mhc.trees.shapes import FixedTree

SCALED_ON = 300  # held-out prompts: a comparison's few dozen are too few to tell the effect of data from chance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", nargs="+", default=["runs/compare"])
    parser.add_argument("--scaling", nargs="*", default=[], metavar="N", help="numbers of conversations, or all")
    parser.add_argument(
        "--scaled", nargs="+", default=["medusa", "cascade"], metavar="FAMILY", help="families to scale"
    )
    options = parser.parse_args()

    results, whole = [], {}
    for number, folder in enumerate(map(Path, options.comparisons)):
        if not (folder / RESULT).exists() and run_stage(Console(), str(folder), ["compare", "--out", str(folder)]):
            raise SystemExit(1)
        whole[folder.name] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        results += lines(whole[folder.name]["families"], f"/{folder.name}" if number else "")
    first = Path(options.comparisons[0])
    for size in options.scaling:
        for family in options.scaled:
            results.append(result(f"{family}/samples={size}", "tokens_per_step", [scaled(first, family, size)]))
    write("drafters", results, comparisons=whole)


def lines(families: dict[str, Any], suffix: str) -> list[dict[str, Any]]:
    """The metrics of every family."""
    medusa = families.get("medusa", {}).get("chain/T=0", {}).get("tokens_per_step")
    results = []
    for name, family in families.items():
        chain, tuned, drawn = family["chain/T=0"], family["tuned/T=0"], family["tuned/T=1"]
        values = {
            "tokens_per_step": chain["tokens_per_step"],
            "predicted_vs_real": family["predicted"] / chain["tokens_per_step"],
            "draft_ms": family["chain_ms"]["draft_ms"],
            "tokens_per_step_T1": family["chain/T=1"]["tokens_per_step"],
            "training_seconds": family["training_seconds"],
            "parameters": family["parameters"],
        }
        if medusa:
            values["tokens_per_step_vs_medusa"] = chain["tokens_per_step"] / medusa
        results += [result(name + suffix, metric, [value]) for metric, value in values.items()]
        for metric, race in (("speedup_vs_plain", tuned), ("speedup_vs_plain_T1", drawn)):
            spread = {"value": race["speedup"], "low": race["speedup_q1"], "high": race["speedup_q3"]}
            results.append({"case": name + suffix, "metric": metric, **spread})
    return results


def scaled(comparison: Path, family: str, size: str) -> float:
    """Tokens per step (chain, T=0) of heads trained on `size` conversations for as many steps as the comparison's."""
    settings = json.loads((comparison / RESULT).read_text(encoding="utf-8"))
    data = settings["data"] or str(comparison / "answers.jsonl")
    folder = comparison if size == "all" and not settings["limit"] else comparison / "scaling" / size
    if not (folder / family / DESCRIPTION).exists():
        steps = settings["families"][family]["steps"]
        limits = [] if size == "all" else ["--data.limit", size]
        budget = [
            "--trainer.max_steps",
            str(steps),
            "--trainer.max_epochs",
            "-1",
            "--trainer.val_check_interval",
            str(steps),
        ]
        budget += ["--trainer.check_val_every_n_epoch", "null", "--model.backbone", settings["backbone"]]
        key = "heads" if family in ("medusa", "cascade") else "draft_length"
        budget += [f"--model.init_args.drafter.init_args.{key}", str(settings["heads"]), *settings["more"], *limits]
        command = ["fit", *training(family, best_trainer(), data, folder / family, *budget)]
        if run_stage(Console(), f"{family} heads from {size} conversations", command):
            raise SystemExit(1)
    drafter = for_decoding(load_drafter(folder / family)[0])
    source = ConversationData(data)
    source.tokenizer = drafter.backbone.tokenizer
    prompts = [prompt.ids for prompt in source.prompts("test", SCALED_ON)]
    engine = Engine(drafter.backbone, drafter, FixedTree.chain(drafter.draft_length))
    answers = [answer for _, answer in engine.generate_ids(prompts, settings["max_new_tokens"], 16)]
    return sum(len(a.token_ids) - 1 for a in answers) / max(1, sum(a.steps - 1 for a in answers))


if __name__ == "__main__":
    main()
