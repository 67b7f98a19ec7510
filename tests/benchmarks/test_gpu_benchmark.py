"""benchmarks/gpu.py goes through all its motions on a CPU, and captured rounds are eager ones where there is a GPU."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mhc.backbone.model import Backbone
from mhc.decoding.request import DecodeRequest
from mhc.drafters import Cascade, Medusa
from mhc.engine import Engine
from mhc.sampling import GREEDY, Sampling
from mhc.trees.shapes import DynamicTree, FixedTree
from tests.helpers.backbones import tiny_backbone

DECODED = {"tokens_per_step", "speedup_vs_plain", "identical", *(f"head{head}_top1" for head in range(4))}
ROUND = {"draft_ms", "verify_ms", "round_ms", "round_ms_eager", "round_vs_plain_step", "round_vs_parts"} | {
    "tokens_until_first_difference",
    "difference_within_tolerance",
    "logit_tolerance",
    "tokens_per_step",
}
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
EXPECTED = {
    "tiny/plain": {
        "step_ms",
        "step_ms_eager",
        "bandwidth_floor_ms",
        "share_of_bandwidth_floor",
        "share_of_measured_bandwidth",
    },
    "tiny/verify": {f"t_verify_{count}_{kind}" for count in COUNTS for kind in ("ms", "vs_plain")},
    **{f"tiny/{family}/{tree}": ROUND for family in ("medusa", "cascade") for tree in ("64", "dynamic64")},
    "tiny/memory": {"peak_gib", "peak_gib_plain", "cache_mib_formula", "cache_mib_measured"},
    "step/tiny": {
        "frozen_forward_ms",
        *(
            f"{metric}{kind}"
            for metric in ("time_vs_frozen_forward", "step_ms", "tokens_per_second", "peak_gib")
            for kind in ("", "_trained_lm_heads")
        ),
    },
    "trained/backbone": {"parameters_millions", "steps", "validation_loss"},
    **{f"trained/{family}/{drawn}": DECODED for family in ("medusa", "cascade") for drawn in ("T=0", "T=1")},
}
SAMPLINGS = {GREEDY: "greedy", Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=3): "drawn"}


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu")


@pytest.fixture
def part1(gpu):
    """Its part 1."""
    return importlib.import_module("gpu_shape")


def test_every_case_is_measured(gpu, tmp_path, monkeypatch):
    """On a CPU, the compiler left out: the fixed buffers are those of compiled rounds all the same."""
    monkeypatch.setattr(Backbone, "compiled", lambda self: self.model.base_model)
    rows = [
        {
            "instruction": f"Add {i % 7} and {i % 5}, please, task {i}.",
            "output": f"That makes {i % 7 + i % 5}, all in all.",
        }
        for i in range(60)
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    options = ["--shape", "tiny", "--device", "cpu", "--minutes", "0.02", "--out", str(tmp_path)]
    gpu.main([*options, "--data", str(tmp_path / "data.json")])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["failed"] == {}
    found: dict[str, dict[str, float]] = {}
    for line in report["results"]:
        assert all(math.isfinite(line[key]) for key in ("value", "low", "high")), line
        found.setdefault(line["case"], {})[line["metric"]] = line["value"]
    missing = {case: metrics - set(found.get(case, ())) for case, metrics in EXPECTED.items()}
    assert not any(missing.values()), missing
    assert found["tiny/memory"]["cache_mib_formula"] == found["tiny/memory"]["cache_mib_measured"]
    for case, metrics in found.items():
        if case.startswith("trained/") and case != "trained/backbone":
            assert metrics["identical"] == 1, case
        if "tokens_until_first_difference" in metrics:
            assert metrics["difference_within_tolerance"] == 1, case
            assert metrics["tokens_per_step"] > 1.5, f"{case}: the heads know the text by heart"


def test_a_part_that_fails_is_written_down(gpu, tmp_path, monkeypatch):
    """The others go on, and what was found stays in the file."""
    report = gpu.Report(tmp_path)
    with report.part("first"):
        report.add("case", metric=1)
    with report.part("second"):
        raise RuntimeError("operation not permitted\n when stream is capturing")
    with report.part("third"):
        report.add("case", other=[1.0, 2.0, 4.0])
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["failed"] == {"second": "RuntimeError: operation not permitted when stream is capturing"}
    assert [(line["metric"], line["value"]) for line in kept["results"]] == [("metric", 1.0), ("other", 2.0)]


def test_without_a_gpu_the_file_says_so(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    gpu.main([])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert (report["gpu"], report["measured"], report["results"]) == (None, False, [])
    assert "no CUDA device" in report["why"] and len(capsys.readouterr().out.splitlines()) == 1


class HostTensors(TorchDispatchMode):
    """Notes every operation that touches a tensor in the host's memory."""

    def __init__(self):
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.operations.append(str(operation))
        return result


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=SAMPLINGS.values())
@pytest.mark.parametrize("tree", ["64", "dynamic64"])
@pytest.mark.parametrize("family", ["medusa", "cascade"])
@torch.inference_mode()
def test_a_round_never_waits_for_the_host(gpu, part1, monkeypatch, family, tree, sampling):
    """What capturing asks for, seen without a GPU: on the meta device, where no value can be read, a round runs
    through, and (the second time, index tensors being there) without a tensor of the host."""
    monkeypatch.setattr(Backbone, "compiled", lambda self: self.model.base_model)
    backbone = part1.random_backbone(gpu.SIZES["tiny"], torch.device("meta"))
    with torch.device("meta"):
        drafter = part1.FAMILIES[family](backbone).to(backbone.dtype)
    engine = Engine(backbone, drafter, part1.TREES[tree](), compile=True)
    decoder = engine.speculative_decoder(1, 308)
    decoder.start([DecodeRequest([1] * 300, 8, sampling)])
    decoder.batch.cache.lengths = [300]
    decoder.batch.activate()
    for step in (decoder.speculative_step, decoder.plain_step, part1.drafting(decoder)):
        step()
        with HostTensors() as host:
            step()
        assert not host.operations


def same_text(part1, device: str, family, tree, sampling: Sampling) -> None:
    """Captured rounds give the eager ones' text in fp32, with heads that have most of it right."""
    backbone = tiny_backbone("llama").to(device)
    prompt, new = [5, 9, 3, 8, 4, 4, 17, 40], 48
    expected = part1.answer(Engine(backbone), prompt, sampling, new).token_ids
    drafter = family(backbone, 4).to(device)
    part1.memorise(drafter, prompt + expected, len(prompt))
    engine = Engine(backbone, drafter, tree, compile=True)
    captured, plain = part1.answer(engine, prompt, sampling, new), next(engine.generate_ids([prompt], new, plain=True))
    slow = part1.answer(Engine(backbone, drafter, tree), prompt, sampling, new)
    assert captured.token_ids == slow.token_ids == expected
    assert captured.accepted == slow.accepted and captured.tokens_per_step > 1.5
    if sampling == GREEDY:
        assert plain[1].token_ids == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=SAMPLINGS.values())
@pytest.mark.parametrize("tree", [FixedTree.chain(4), DynamicTree(width=3, depth=4, budget=14)], ids=["chain", "tree"])
@pytest.mark.parametrize("family", [Medusa, Cascade])
def test_a_captured_round_is_an_eager_one(part1, family, tree, sampling):
    same_text(part1, "cuda", family, tree, sampling)
