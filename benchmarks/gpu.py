"""What drafting costs and gains on a GPU, where reading weights and launching operations decide.

    python benchmarks/gpu.py [--shape 7b|tiny] [--minutes 4] [--device cuda] [--data PATH ...] [--out DIR]

Under 8 minutes in all; writes <DIR>/gpu.json (default benchmarks/results) after every part. A part that fails stands
under "failed" and the others still run. Without a GPU the file says that nothing was measured; `--device cpu` goes
through the motions all the same. Values are medians, low and high the extremes.

1. A Llama of 7B's shape (or `tiny`), random weights in bf16, 512 tokens of context, 4 untrained heads. Whatever is
   timed is compiled and captured as a CUDA graph unless it is called eager, and takes its turn with all the others.

    7b/plain            step_ms, step_ms_eager             one plain step, host synchronisation included
                        bandwidth_floor_ms                 time to read the weights and the KV cache of one token once,
                                                           by the data sheet where the GPU is known, else as measured
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
                        tokens_per_step                    of that text: that guesses were accepted at all
    7b/memory           peak_gib_plain                     most held: the model and one plain decoder
                        peak_gib                           all engines of part 1 side by side
                        cache_mib_formula                  2 * layers * rows * heads * capacity * width * 2 bytes
                        cache_mib_measured                 what making such a cache took

2. A backbone of some 50 M parameters trained here for --minutes, heads for a quarter of that each, and held-out
   prompts decoded plainly and with heads, fp32. (The times shrink where part 1 has taken too long.)

    trained/backbone        parameters_millions, steps, validation_loss
    trained/<family>/T=0    tokens_per_step, identical (share of the prompts), speedup_vs_plain (low and high are
                            quartiles), tokens_per_second, plain_tokens_per_second, head<k>_top1 (on held-out text)
    trained/<family>/T=1    the same, drawn with seed 0
"""

import argparse
import copy
import gc
import resource
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from common import RESULTS, ROOT, result, save, timed, write
from mhc.backbone import Backbone
from mhc.benchmark import compare
from mhc.drafters import Cascade, Drafter, Medusa
from mhc.engine import BUCKET, Engine, Rows
from mhc.losses import chunked_cross_entropy
from mhc.sampling import GREEDY, Sampling
from mhc.tree import DynamicTree, FixedTree, Shape, Tree, shape_of

CONTEXT, NEW, HEADS = 512, 64, 4
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # nodes verified
WARM = 2  # times through that are not counted
DATA_SHEET = {"H200": 4.8e12}  # bytes a second
SECONDS = 450  # for everything, so that it ends within 8 minutes, imports included
DECODING = 90  # seconds of that kept for the decoding at the end, compilation included
TRIAL = 12  # training steps that tell how long one takes
FAMILIES: dict[str, Callable[[Backbone], Drafter]] = {
    "medusa": lambda backbone: Medusa(backbone, heads=HEADS, blocks=1),
    "cascade": lambda backbone: Cascade(backbone, heads=HEADS, blocks=1),
}
TREES = {"64": lambda: shape_of("mc_sim_7b_63"), "dynamic64": lambda: DynamicTree(width=8, depth=4, budget=64)}
SAMPLINGS = {"T=0": GREEDY, "T=1": Sampling(temperature=1.0, seed=0)}


@dataclass
class Size:
    """How large everything is. random: the model of part 1; trained: that of part 2. repeats: of every timing.
    copied: bytes of the bandwidth test. batch x length: tokens of a training step. prompts x new: tokens decoded."""

    random: dict[str, int]
    trained: dict[str, Any]
    repeats: int
    copied: int
    conversations: int
    batch: int
    length: int
    prompts: int
    new: int


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
        copied=4 << 20,
        conversations=1000,
        batch=4,
        length=64,
        prompts=3,
        new=8,
    ),
}


class Report:
    """What was found so far, on disk after every part."""

    def __init__(self, out: Path, **extra: Any):
        self.out, self.extra, self.started = out, extra, time.perf_counter()
        self.results: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def everything(self) -> dict[str, Any]:
        return {**self.extra, "seconds": round(self.seconds, 1), "failed": self.failed}

    def say(self, text: str) -> None:
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    def add(self, case: str, **metrics: list[float] | float) -> None:
        """Lines of the result file; a number is a list of one."""
        for metric, values in metrics.items():
            self.results.append(result(case, metric, values if isinstance(values, list) else [float(values)]))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Say what is under way, note it where it fails, and write down what there is."""
        self.say(name)
        try:
            yield
        except Exception as error:  # whatever it is, the other parts go on
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
            traceback.print_exc()
            self.say(f"FAILED: {name}: {self.failed[name]}")
        save("gpu", self.results, self.out, **self.everything)


# ---- part 1: a random model of a given shape


@dataclass
class Place:
    """An engine whose one row has read the prompt; every timed round starts from there."""

    engine: Engine
    rows: Rows
    length: int
    root: Tensor

    def back(self) -> None:
        """Forget the rounds since."""
        self.rows.cache.lengths[0] = self.length
        self.rows.cache.select(0, 1)
        self.rows.root.copy_(self.root)

    def round(self) -> None:
        """A whole round as when decoding, up to the new tokens on the host."""
        self.engine._round(self.rows, self.rows.speculate)

    def draft(self) -> None:
        """The growing of a tree alone."""
        self.rows.run(drafting)


Calls = dict[tuple[str, str], tuple[Callable[[], Any], Place]]  # by case and metric: what is timed, and where


@torch.inference_mode()
def place_after(prompt: list[int], engine: Engine, *also: Callable[[Rows], Tensor]) -> Place:
    """Compile and capture the engine's round, and the rounds `also`; read the prompt; make one round."""
    speculate = engine.drafter is not None
    rows = engine.rows([prompt], [NEW], [GREEDY], 1, speculate)
    rounds = (engine._speculate if speculate else engine._plain, *also)
    for round in rounds:
        deque(rows.warm_up(round), maxlen=0)
    rows.join(0, engine._prefill(rows, [0])[0])
    rows.cache.select(0, 1)
    assert rows.graphs is None or all(rows._key(round) in rows.graphs for round in rounds), "a round was not captured"
    place = Place(engine, rows, rows.cache.lengths[0], rows.root.clone())
    place.round()
    place.back()
    return place


def grown(rows: Rows) -> Tree:
    """The tree that the rows' engine grows now."""
    engine = rows.engine
    state = engine.drafter.begin(rows.memory, rows.active)
    return engine.tree.grow(engine.drafter, state, rows.root, rows.draw(engine.tree.levels_deep))


def drafting(rows: Rows) -> Tensor:
    """A round of nothing but drafting, captured like any other."""
    return grown(rows).tokens


class Standing(Shape):
    """A tree grown once and kept: rounds of it are rounds without drafting."""

    def __init__(self, shape: Shape):
        self.nodes, self.levels_deep, self.width, self.static = shape.nodes, shape.levels_deep, shape.width, True
        self.shape, self.tree = shape, None

    def grow(self, drafter, state, root, draw) -> Tree:
        if self.tree is None:
            self.tree = self.shape.grow(drafter, state, root, draw)
        return self.tree

    def describe(self) -> dict[str, Any]:
        return self.shape.describe()


def bush(nodes: int) -> FixedTree:
    """A tree of so many nodes: a chain as deep as the heads go, the rest below the root."""
    chain = min(nodes - 1, HEADS)
    return FixedTree([*((0,) * deep for deep in range(1, chain + 1)), *((rank,) for rank in range(1, nodes - chain))])


def random_backbone(size: Size, device: torch.device) -> Backbone:
    """A Llama made in bf16 where it will run; it never ends an answer."""
    torch.manual_seed(0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model("llama", **size.random, **ends)
    with torch.device(device):
        return Backbone(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def measure_bandwidth(report: Report, size: Size, device: torch.device) -> tuple[float, float]:
    """Bytes a second: of a large copy, read and written bytes counted, and of the data sheet (else the copy's)."""
    source = torch.empty(size.copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copies = [timed(lambda: target.copy_(source))[0] for _ in range(WARM + 10)][WARM:]
    measured = 2 * size.copied / median(copies)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = next((value for known, value in DATA_SHEET.items() if known in name), None)
    report.extra["bandwidth_tb_per_s"] = {
        "measured": round(measured / 1e12, 4),
        "data_sheet": None if sheet is None else sheet / 1e12,
    }
    return measured, sheet or measured


def bytes_of_a_step(backbone: Backbone) -> int:
    """What one token has to read: all weights but the embedding, and the keys and values of the context."""
    config = backbone.model.config
    weights = sum(parameter.nbytes for parameter in backbone.model.parameters())
    width = config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * CONTEXT * width * backbone.dtype.itemsize
    return weights - backbone.model.get_input_embeddings().weight.nbytes + cache


def measure_shape(report: Report, shape: str, device: torch.device) -> None:
    """Part 1: set everything up, time it all in turns, then see whether captured rounds do what eager ones do."""
    size = SIZES[shape]
    bandwidths = None
    with report.part("bandwidth"):
        bandwidths = measure_bandwidth(report, size, device)
    calls: Calls = {}
    one = None
    with report.part(f"{shape}/plain: eager"):
        backbone = random_backbone(size, device)
        eager = Backbone(backbone.model)  # one that nobody compiles
        prompt = torch.randint(backbone.vocabulary_size, (CONTEXT,)).tolist()
        measure_cache(report, f"{shape}/memory", backbone)
        one = place_after(prompt, Engine(eager))
        calls[f"{shape}/plain", "step_ms_eager"] = one.round, one
        report.add(f"{shape}/memory", peak_gib_plain=peak(device))
    if one is None:
        return  # without a model that decodes nothing here makes sense
    with report.part(f"{shape}/plain: compile, capture"):
        place = place_after(prompt, Engine(backbone, compile=True))
        calls[f"{shape}/plain", "step_ms"] = place.round, place
    checks = set_up_trees(report, shape, backbone, eager, prompt, calls)
    with report.part(f"{shape}: timing"):
        times = interleaved(calls, size.repeats)
        add_times(report, shape, times, bytes_of_a_step(backbone), bandwidths)
        report.add(f"{shape}/memory", peak_gib=peak(device))
    for case, (captured, slow) in checks.items():
        with report.part(f"{case}: captured against eager"):
            check_texts(report, case, captured, slow, one, prompt)


def set_up_trees(
    report: Report, shape: str, backbone: Backbone, eager: Backbone, prompt: list[int], calls: Calls
) -> dict[str, tuple[Place, Place]]:
    """Compile and capture verification and every family's rounds, and add them to `calls`; by case the places of the
    captured and of the eager round."""
    drafters = {}
    with torch.device(backbone.device):
        for family, build in FAMILIES.items():
            drafters[family] = build(eager).to(backbone.dtype)
    for count in COUNTS:
        with report.part(f"{shape}/verify: compile, capture {count} nodes"):
            place = place_after(prompt, Engine(backbone, drafters["medusa"], Standing(bush(count)), compile=True))
            calls[f"{shape}/verify", f"t_verify_{count}_ms"] = place.round, place
    checks = {}
    for family, drafter in drafters.items():
        for name, tree in TREES.items():
            case = f"{shape}/{family}/{name}"
            with report.part(f"{case}: compile, capture"):
                standing = place_after(prompt, Engine(backbone, drafter, Standing(tree()), compile=True))
                whole = place_after(prompt, Engine(backbone, drafter, tree(), compile=True), drafting)
                slow = place_after(prompt, Engine(eager, drafter, tree()))
                calls[case, "draft_ms"] = whole.draft, whole
                calls[case, "verify_ms"] = standing.round, standing
                calls[case, "round_ms"] = whole.round, whole
                calls[case, "round_ms_eager"] = slow.round, slow
                checks[case] = whole, slow
    return checks


@torch.inference_mode()
def interleaved(calls: Calls, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every call, one after the other, `repeats` times over."""
    found: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(WARM + repeats):
        for key, (call, place) in calls.items():
            found[key].append(1000 * timed(call)[0])
            place.back()
    return {key: values[WARM:] for key, values in found.items()}


def add_times(
    report: Report,
    shape: str,
    times: dict[tuple[str, str], list[float]],
    read: int,
    bandwidths: tuple[float, float] | None,
) -> None:
    """The times, and what they are in proportion to each other and to reading `read` bytes."""
    for (case, metric), values in times.items():
        report.add(case, **{metric: values})
    step = times.get((f"{shape}/plain", "step_ms"))
    if step and bandwidths:
        measured, sheet = (1000 * read / bandwidth for bandwidth in bandwidths)  # floors in ms
        report.add(
            f"{shape}/plain",
            bandwidth_floor_ms=sheet,
            share_of_bandwidth_floor=[sheet / value for value in step],
            share_of_measured_bandwidth=[measured / value for value in step],
        )
    for (case, metric), values in times.items():
        if step and metric.startswith("t_verify"):
            report.add(case, **{metric.replace("_ms", "_vs_plain"): ratios(values, step)})
        if metric == "round_ms":
            parts = [draft + verify for draft, verify in zip(times[case, "draft_ms"], times[case, "verify_ms"])]
            report.add(case, round_vs_parts=ratios(values, parts))
            if step:
                report.add(case, round_vs_plain_step=ratios(values, step))


def ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under)]


def peak(device: torch.device) -> float:
    """Most GiB that the device (on a CPU this process) ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_cache(report: Report, case: str, backbone: Backbone) -> None:
    """What a cache of one row takes, by the formula and on the device."""
    config = backbone.model.config
    capacity = -(-(CONTEXT + NEW) // BUCKET) * BUCKET
    width = config.hidden_size // config.num_attention_heads
    formula = 2 * config.num_hidden_layers * 1 * config.num_key_value_heads * capacity * width * backbone.dtype.itemsize
    before = torch.cuda.memory_allocated(backbone.device) if backbone.device.type == "cuda" else 0
    cache = backbone.cache(1, capacity, BUCKET)
    after = torch.cuda.memory_allocated(backbone.device) if backbone.device.type == "cuda" else cache.buffer.nbytes
    report.add(case, cache_mib_formula=formula / 2**20, cache_mib_measured=(after - before) / 2**20)


# ---- do captured rounds do the same as eager ones?


def check_texts(report: Report, case: str, captured: Place, eager: Place, one: Place, prompt: list[int]) -> None:
    """Decode the prompt both ways, with heads that know the text, and look where the texts part."""
    tolerance = logit_tolerance(captured, one)
    drafter = captured.engine.drafter
    untrained = copy.deepcopy(drafter.state_dict())
    expected = answer(one.engine, prompt)
    memorise(drafter, prompt + expected.token_ids, len(prompt))
    left, right = answer(captured.engine, prompt), answer(eager.engine, prompt)
    drafter.load_state_dict(untrained)
    pairs = enumerate(zip(left.token_ids, right.token_ids))
    parted = next((at for at, (a, b) in pairs if a != b), NEW)
    gap = 0.0 if parted == NEW else gap_after(one.engine.backbone, prompt + right.token_ids[:parted])
    report.add(
        case,
        tokens_until_first_difference=parted,
        difference_within_tolerance=gap <= tolerance,
        logit_gap_at_first_difference=gap,
        logit_tolerance=tolerance,
        tokens_per_step=left.tokens_per_step,
    )


def answer(engine: Engine, prompt: list[int], sampling: Sampling = GREEDY, new: int = NEW):
    """The engine's Generation for a prompt of token ids."""
    return next(found for _, found in engine.generate_ids([prompt], new, sampling=sampling))


def memorise(drafter: Drafter, text: list[int], start: int, steps: int = 40) -> None:
    """Teach the heads the tokens of one text from `start` on, by heart."""
    ids = torch.tensor([text], device=drafter.backbone.device)
    position = torch.arange(start - 1, len(text) - 1 - drafter.heads, device=ids.device)
    features = drafter.backbone.features(ids)
    drafter.requires_grad_(True)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=0.5 / drafter.backbone.width, weight_decay=0.0)
    for _ in range(steps):
        loss = torch.zeros((), device=ids.device)
        for head, hidden in enumerate(drafter(features, ids, (torch.zeros_like(position), position))):
            labels = ids[0, position + 2 + head]
            loss = loss + chunked_cross_entropy(hidden, drafter.unembedding(head), labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def logit_tolerance(captured: Place, one: Place) -> float:
    """Largest difference between the logits of a tree's forward and of one-token forwards along its deepest path."""
    engine, rows = captured.engine, captured.rows
    tree = grown(rows)
    logits, _ = engine.backbone.decode(tree.tokens, *rows.places(tree.ancestors, tree.depth))  # (1,N,V)
    path = tree.paths[0, tree.depth[0].argmax()].tolist()
    differences = []
    for node in path:
        one.rows.root.copy_(tree.tokens[:, node])
        alone, _ = one.engine.backbone.decode(one.rows.root[:, None], *one.rows.places(*one.rows.alone))  # (1,1,V)
        differences.append((alone[0, 0].float() - logits[0, node].float()).abs().max().item())
        one.rows.cache.extend([1])
    captured.back()
    one.back()
    return max(differences)


@torch.inference_mode()
def gap_after(backbone: Backbone, text: list[int]) -> float:
    """How much likelier, in logits, the best next token is than the second."""
    hidden = backbone.features(torch.tensor([text], device=backbone.device)).hidden[:, -1]
    best, second = backbone.unembed(hidden).float().topk(2).values[0].tolist()
    return best - second


# ---- part 2: a trained model


def find_data(named: list[str] | None) -> list[str]:
    """The conversations to train on: those named, else those of shared/data, else what the project generates."""
    if named:
        return named
    for shared in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data"):
        if found := [str(shared / name) for name in ("alpaca", "sgd") if (shared / name).is_dir()]:
            return found
    return ["pocket"]


def together(paths: list[str], folder: Path) -> str:
    """One path for all of these: the only one, or a folder of links to their files."""
    if len(paths) == 1:
        return paths[0]
    folder.mkdir()
    for number, path in enumerate(map(Path, paths)):
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            (folder / f"{number}-{file.name}").symlink_to(file.resolve())
    return str(folder)


def train_and_decode(report: Report, shape: str, paths: list[str], minutes: float, device: torch.device) -> None:
    """Part 2."""
    from datamodules import ConversationData
    from mhc.lm.tokenizer import train_tokenizer
    from mhc.module import DraftModule, LMModule

    size = SIZES[shape]
    with TemporaryDirectory() as temporary:
        model = str(Path(temporary) / "model")
        with report.part("trained/backbone"):
            data = ConversationData(
                together(paths, Path(temporary) / "data"),
                max_length=size.length,
                batch_size=size.batch,
                limit=size.conversations,
                pack=True,
            )
            texts = (turn["content"] for found in data.conversations("train") for turn in found.messages)
            train_tokenizer(texts, size.trained["vocab_size"]).save_pretrained(model)
            module = LMModule(size.trained, tokenizer=model, learning_rate=1.5e-3)
            data.tokenizer = module.tokenizer
            data.setup()
            seconds = min(60 * minutes, (SECONDS - DECODING - report.seconds) / (1 + len(FAMILIES) / 4))
            if seconds <= 0:
                raise TimeoutError("part 1 has left no time")
            report.say(f"training for {seconds:.0f} s on {data.totals['train'].tokens:,} tokens of {', '.join(paths)}")
            steps = fit(module, data, seconds, device)
            report.add(
                "trained/backbone",
                parameters_millions=sum(p.numel() for p in module.model.parameters()) / 1e6,
                steps=steps,
                validation_loss=measured_by(module, data, device)["val/loss"],
            )
            report.extra["training"] = {"data": paths, "tokens": data.totals["train"].tokens, "seconds": round(seconds)}
            module.model.save_pretrained(model)
        if "trained/backbone" in report.failed:
            return
        prompts = sorted((prompt.ids for prompt in data.prompts("test", size.prompts)), key=len, reverse=True)
        backbone = Backbone.load(model, device=str(device))
        tree = DynamicTree(width=4, depth=HEADS, budget=32)
        report.extra["training"]["tree"] = tree.describe()
        for family, build in FAMILIES.items():
            case = f"trained/{family}"
            with report.part(f"{case}: training"):
                module = DraftModule(build, model, learning_rate=2e-3)
                fit(module, data, seconds / 4, device)
                measured = measured_by(module, data, device)
            if f"{case}: training" in report.failed:
                continue
            top1 = {f"head{head}_top1": measured[f"val/head{head}_top1"] for head in range(HEADS)}
            module.to(device)
            for name, sampling in SAMPLINGS.items():
                for compiled in (True, False):
                    part = f"{case}/{name}: decoding{'' if compiled else ', eager'}"
                    with report.part(part):
                        engine = Engine(
                            backbone if compiled else Backbone(backbone.model, backbone.tokenizer),
                            module.drafter,
                            tree,
                            compile=compiled,
                        )
                        report.add(f"{case}/{name}", **decoded(engine, prompts, size.new, sampling), **top1)
                    if part not in report.failed:
                        break


def fit(module, data, seconds: float, device: torch.device) -> int:
    """Train for about so many seconds; a few steps first tell how many that is. Returns the steps made."""
    import lightning

    class Clock(lightning.Callback):
        def __init__(self):
            self.ends: list[float] = []

        def on_train_batch_end(self, *_):
            self.ends.append(time.perf_counter())

    started, clock = time.perf_counter(), Clock()
    trainer(device, max_steps=TRIAL, callbacks=[clock]).fit(module, data)
    step = median(b - a for a, b in zip(clock.ends[TRIAL // 2 :], clock.ends[TRIAL // 2 + 1 :]))
    left = max(0.0, seconds - (time.perf_counter() - started))
    whole = trainer(device, max_steps=max(2, int(left / step)), max_time=timedelta(seconds=1.1 * left + 1))
    whole.fit(module, data)
    return whole.global_step


def measured_by(module, data, device: torch.device) -> dict[str, float]:
    """The figures of a short validation."""
    validation = trainer(device, limit_val_batches=20)
    validation.validate(module, data, verbose=False)
    return {name: float(value) for name, value in validation.callback_metrics.items()}


def trainer(device: torch.device, **options: Any):
    """A Lightning trainer that writes nothing and says nothing."""
    import lightning

    on_gpu = device.type == "cuda"
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if on_gpu else "32-true",
        max_epochs=-1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **dict.fromkeys(quiet, False),
        **{"limit_val_batches": 0, **options},
    )


def decoded(engine: Engine, prompts: list[list[int]], new: int, sampling: Sampling) -> dict[str, list[float] | float]:
    """What `compare` finds. The longest prompt comes first and the shortest is tried beforehand, so that buffers and
    graphs of all lengths are there when the clock runs."""
    for prompt in (prompts[0], prompts[-1]):
        for plain in (True, False):
            next(engine.generate_ids([prompt], new, plain=plain, sampling=sampling))
    found = compare(engine, prompts, new, sampling=sampling)
    return {
        "tokens_per_step": found["tokens_per_step"],
        "speedup_vs_plain": [found["speedup_q1"], found["speedup"], found["speedup_q3"]],
        "identical": found["identical"] / found["prompts"],
        "plain_tokens_per_second": found["plain_tokens_per_second"],
        "tokens_per_second": found["tokens_per_second"],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SIZES, default="7b", help="of everything: 7b, or tiny to try the script")
    parser.add_argument("--minutes", type=float, default=4.0, help="training of part 2's backbone (default 4)")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="files or folders of conversations")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where gpu.json goes")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "this machine has no CUDA device"
        path = save("gpu", [], options.out, gpu=None, measured=False, why=why)
        print(f"nothing measured, {why}: {path}")
        return
    paths = find_data(options.data)
    if missing := [path for path in paths if path != "pocket" and not Path(path).exists()]:
        parser.error(f"no such data: {', '.join(missing)}")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    report = Report(options.out, gpu=gpu, measured=True, shape=options.shape)
    measure_shape(report, options.shape, device)
    torch.compiler.reset()  # the next model is another
    gc.collect()  # engines and their rows know each other
    if gpu:
        torch.cuda.empty_cache()
    train_and_decode(report, options.shape, paths, options.minutes, device)
    write("gpu", report.results, options.out, **report.everything)
    report.say(f"done, {len(report.failed)} parts failed")


if __name__ == "__main__":
    main()
