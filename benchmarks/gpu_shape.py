"""Part 1 of benchmarks/gpu.py: costs of steps and rounds of a random model of a given shape, and whether captured
rounds emit the same as eager ones."""

import copy
import resource
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from common import timed
from gpu_common import FAMILIES, HEADS, Report, Size
from mhc.backbone.model import Backbone
from mhc.decoding.batch import BUCKET
from mhc.decoding.decoder import Decoder, SpeculativeDecoder, Step
from mhc.decoding.request import DecodeRequest
from mhc.drafters import Drafter
from mhc.engine import Engine
from mhc.sampling import GREEDY, Sampling
from mhc.training.losses import chunked_loss
from mhc.trees.shapes import DynamicTree, Tree, TreeShape, parse_tree
from mhc.tuning.measure import bush

CONTEXT, NEW = 512, 64
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # nodes verified
WARM = 2  # repeats that are not counted
DATA_SHEET = {"H200": 4.8e12}  # bytes per second
TREES = {"64": lambda: parse_tree("mc_sim_7b_63"), "dynamic64": lambda: DynamicTree(width=8, depth=4, budget=64)}


@dataclass
class Prefilled:
    """A decoder whose single row has read the prompt; every timed round starts from there."""

    engine: Engine
    decoder: Decoder
    steps: list[Step]  # a round's, then others that are captured
    start: tuple[list[int], Tensor]

    def rewind(self) -> None:
        """Undo the rounds since."""
        self.decoder.batch.restore(self.start)

    def round(self) -> None:
        """A whole round as when decoding, up to the new tokens on the host."""
        self.decoder.run(self.steps[0])

    def draft(self) -> None:
        """Grow a tree, without verifying it."""
        self.decoder.launch(self.steps[1])


Calls = dict[
    tuple[str, str], tuple[Callable[[], Any], Prefilled]
]  # by case and metric: what is timed, and on which decoder


@torch.inference_mode()
def prefilled(prompt: list[int], engine: Engine, *also: Callable[[SpeculativeDecoder], Step]) -> Prefilled:
    """Compile and capture the engine's round, and the steps `also` of its decoder; read the prompt; make one round."""
    requests = [DecodeRequest(prompt, NEW)]
    decoder: Decoder
    steps: list[Step]
    if engine.drafter is None:
        decoder = engine.decoder(1, len(prompt) + NEW)
        steps = [decoder.plain_step]
    else:
        decoder = engine.speculative_decoder(1, len(prompt) + NEW)
        steps = [decoder.speculative_step, *(make(decoder) for make in also)]
    decoder.start(requests)
    decoder.warm_up(also=steps[1:])
    decoder.begin(requests)
    assert decoder.graphs is None or all(map(decoder.captured, steps)), "a round was not captured"
    prefill = Prefilled(engine, decoder, steps, decoder.batch.snapshot())
    prefill.round()
    prefill.rewind()
    return prefill


def grown(decoder: SpeculativeDecoder) -> Tree:
    """The tree that the decoder grows now."""
    batch = decoder.batch
    state, noise = decoder.drafter.start_tree(decoder.memory, batch.active), batch.round_noise(decoder.tree.max_depth)
    return decoder.tree.grow(decoder.drafter, state, batch.root, noise)


def drafting(decoder: SpeculativeDecoder) -> Step:
    """A step that only drafts, captured like any other."""

    def draft() -> Tensor:
        return grown(decoder).tokens

    return draft


class GrownTree(TreeShape):
    """A tree grown once and reused: its rounds are rounds without drafting."""

    def __init__(self, shape: TreeShape):
        self.nodes, self.max_depth, self.width, self.static = shape.nodes, shape.max_depth, shape.width, True
        self.shape, self.tree = shape, None

    def grow(self, drafter, state, root, noise) -> Tree:
        if self.tree is None:
            self.tree = self.shape.grow(drafter, state, root, noise)
        return self.tree

    def describe(self) -> dict[str, Any]:
        return self.shape.describe()


def random_backbone(size: Size, device: torch.device) -> Backbone:
    """A random Llama in bf16 on the device; without an end-of-text token."""
    torch.manual_seed(0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model("llama", **size.random, **ends)
    with torch.device(device):
        return Backbone(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def measure_bandwidth(report: Report, size: Size, device: torch.device) -> tuple[float, float]:
    """Bytes per second: of a large copy (bytes read and written), and of the data sheet (else the copy's)."""
    source = torch.empty(size.copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copies = [timed(lambda: target.copy_(source))[0] for _ in range(WARM + 10)][WARM:]
    measured = 2 * size.copied / median(copies)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = next((value for model, value in DATA_SHEET.items() if model in name), None)
    report.extra["bandwidth_tb_per_s"] = {
        "measured": round(measured / 1e12, 4),
        "data_sheet": None if sheet is None else sheet / 1e12,
    }
    return measured, sheet or measured


def bytes_of_a_step(backbone: Backbone) -> int:
    """Bytes read per token: all weights but the embedding, and the keys and values of the context."""
    config = backbone.model.config
    weights = sum(parameter.nbytes for parameter in backbone.model.parameters())
    width = config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * CONTEXT * width * backbone.dtype.itemsize
    return weights - backbone.model.get_input_embeddings().weight.nbytes + cache


def measure_shape(report: Report, shape: str, size: Size, device: torch.device) -> None:
    """Part 1: set everything up, time it interleaved, then check captured rounds against eager ones."""
    bandwidths = None
    with report.part("bandwidth"):
        bandwidths = measure_bandwidth(report, size, device)
    calls: Calls = {}
    plain = None
    with report.part(f"{shape}/plain: eager"):
        backbone = random_backbone(size, device)
        prompt = torch.randint(backbone.vocabulary_size, (CONTEXT,)).tolist()
        measure_cache(report, f"{shape}/memory", backbone)
        plain = prefilled(prompt, Engine(backbone))
        calls[f"{shape}/plain", "step_ms_eager"] = plain.round, plain
        report.add(f"{shape}/memory", peak_gib_plain=peak(device))
    if plain is None:
        return  # nothing else can be measured
    with report.part(f"{shape}/plain: compile, capture"):
        prefill = prefilled(prompt, Engine(backbone, compile=True))
        calls[f"{shape}/plain", "step_ms"] = prefill.round, prefill
    checks = set_up_trees(report, shape, backbone, prompt, calls)
    with report.part(f"{shape}: timing"):
        times = interleaved(calls, size.repeats)
        add_times(report, shape, times, bytes_of_a_step(backbone), bandwidths)
        report.add(f"{shape}/memory", peak_gib=peak(device))
    for case, (captured, eager) in checks.items():
        with report.part(f"{case}: captured against eager"):
            check_texts(report, case, captured, eager, plain, prompt)


def set_up_trees(
    report: Report, shape: str, backbone: Backbone, prompt: list[int], calls: Calls
) -> dict[str, tuple[Prefilled, Prefilled]]:
    """Compile and capture verification and every family's rounds, and add them to `calls`; returns by case the decoders
    of the captured and of the eager round."""
    with torch.device(backbone.device):
        drafters = {family: build(backbone).to(backbone.dtype) for family, build in FAMILIES.items()}
    for count in COUNTS:
        with report.part(f"{shape}/verify: compile, capture {count} nodes"):
            grown_tree = GrownTree(bush(count, HEADS))
            prefill = prefilled(prompt, Engine(backbone, drafters["medusa"], grown_tree, compile=True))
            calls[f"{shape}/verify", f"t_verify_{count}_ms"] = prefill.round, prefill
    checks = {}
    for family, drafter in drafters.items():
        for name, tree in TREES.items():
            case = f"{shape}/{family}/{name}"
            with report.part(f"{case}: compile, capture"):
                verifying = prefilled(prompt, Engine(backbone, drafter, GrownTree(tree()), compile=True))
                whole = prefilled(prompt, Engine(backbone, drafter, tree(), compile=True), drafting)
                eager = prefilled(prompt, Engine(backbone, drafter, tree()))
                calls[case, "draft_ms"] = whole.draft, whole
                calls[case, "verify_ms"] = verifying.round, verifying
                calls[case, "round_ms"] = whole.round, whole
                calls[case, "round_ms_eager"] = eager.round, eager
                checks[case] = whole, eager
    return checks


@torch.inference_mode()
def interleaved(calls: Calls, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of all calls, one after the other, `repeats` times."""
    milliseconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(WARM + repeats):
        for key, (call, prefill) in calls.items():
            milliseconds[key].append(1000 * timed(call)[0])
            prefill.rewind()
    return {key: values[WARM:] for key, values in milliseconds.items()}


def add_times(
    report: Report,
    shape: str,
    times: dict[tuple[str, str], list[float]],
    read: int,
    bandwidths: tuple[float, float] | None,
) -> None:
    """Report the times, their ratios, and their share of the time to read `read` bytes."""
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
    """Peak memory in GiB of the device (on a CPU: of this process)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_cache(report: Report, case: str, backbone: Backbone) -> None:
    """Memory of a cache of one row, by the formula and as measured on the device."""
    config = backbone.model.config
    bucket = BUCKET[backbone.device.type]
    capacity = -(-(CONTEXT + NEW) // bucket) * bucket
    width = config.hidden_size // config.num_attention_heads
    formula = 2 * config.num_hidden_layers * 1 * config.num_key_value_heads * capacity * width * backbone.dtype.itemsize
    before = torch.cuda.memory_allocated(backbone.device) if backbone.device.type == "cuda" else 0
    cache = backbone.cache(1, capacity, bucket)
    after = (
        torch.cuda.memory_allocated(backbone.device)
        if backbone.device.type == "cuda"
        else sum(b.nbytes for b in cache.buffers)
    )
    report.add(case, cache_mib_formula=formula / 2**20, cache_mib_measured=(after - before) / 2**20)


# ---- do captured rounds emit the same as eager ones?


def check_texts(
    report: Report, case: str, captured: Prefilled, eager: Prefilled, plain: Prefilled, prompt: list[int]
) -> None:
    """Decode the prompt both ways, with heads trained on the text, and find where the texts diverge."""
    tolerance = logit_tolerance(captured, plain)
    drafter = captured.engine.drafter
    untrained = copy.deepcopy(drafter.state_dict())
    expected = answer(plain.engine, prompt)
    memorise(drafter, prompt + expected.token_ids, len(prompt))
    left, right = answer(captured.engine, prompt), answer(eager.engine, prompt)
    drafter.load_state_dict(untrained)
    pairs = enumerate(zip(left.token_ids, right.token_ids))
    first = next((index for index, (a, b) in pairs if a != b), NEW)
    gap = 0.0 if first == NEW else gap_after(plain.engine.backbone, prompt + right.token_ids[:first])
    report.add(
        case,
        tokens_until_first_difference=first,
        difference_within_tolerance=gap <= tolerance,
        logit_gap_at_first_difference=gap,
        logit_tolerance=tolerance,
        tokens_per_step=left.tokens_per_step,
    )


def answer(engine: Engine, prompt: list[int], sampling: Sampling = GREEDY, new: int = NEW):
    """The engine's Generation for a prompt of token ids."""
    return next(generation for _, generation in engine.generate_ids([prompt], new, sampling=sampling))


def memorise(drafter: Drafter, text: list[int], start: int, steps: int = 40) -> None:
    """Overfit the heads on one text from `start` on."""
    ids = torch.tensor([text], device=drafter.backbone.device)
    position = torch.arange(start - 1, len(text) - 1 - drafter.draft_length, device=ids.device)
    features = drafter.backbone.features(ids, drafter.taps)
    drafter.requires_grad_(True)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=0.5 / drafter.backbone.width, weight_decay=0.0)
    for _ in range(steps):
        loss = torch.zeros((), device=ids.device)
        for head, (hidden, _) in enumerate(drafter(features, ids, (torch.zeros_like(position), position))):
            labels = ids[0, position + 2 + head]
            loss = loss + chunked_loss(hidden, drafter.unembedding(head), labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def logit_tolerance(captured: Prefilled, plain: Prefilled) -> float:
    """Largest difference between the logits of a tree's forward and of one-token forwards along its deepest path."""
    decoder, batch = captured.decoder, plain.decoder.batch
    assert isinstance(decoder, SpeculativeDecoder)
    tree = grown(decoder)
    inputs = decoder.batch.forward_inputs(tree.ancestors, tree.depth)
    logits, _ = decoder.backbone.decode(tree.tokens, *inputs)  # (1,N,V)
    path = tree.paths[0, tree.depth[0].argmax()].tolist()
    differences = []
    for node in path:
        alone, _ = decoder.backbone.decode(
            tree.tokens[:, node, None], *batch.forward_inputs(*batch.root_only)
        )  # (1,1,V)
        differences.append((alone[0, 0].float() - logits[0, node].float()).abs().max().item())
        batch.cache.advance([1])
    captured.rewind()
    plain.rewind()
    return max(differences)


@torch.inference_mode()
def gap_after(backbone: Backbone, text: list[int]) -> float:
    """How much likelier, in logits, the best next token is than the second."""
    hidden = backbone.features(torch.tensor([text], device=backbone.device)).hidden[:, -1]
    best, second = backbone.unembed(hidden).float().topk(2).values[0].tolist()
    return best - second
