"""Training on collected features is training with the backbone: the same batches, the same losses."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import run
from datamodules import ConversationData, FeatureData
from datamodules.batching import collate
from mhc.backbone.model import Backbone
from mhc.distill.features import collect
from mhc.drafters import Cascade, Eagle3, Medusa
from mhc.errors import UserError
from mhc.training.draft_module import DraftModule
from tests.helpers.backbones import tiny_backbone
from tests.helpers.drafters import FAMILIES
from tests.helpers.features import Rows, module_on, settings_for
from tests.helpers.runs import COMMON, ROOT, small, sums

HEADS = 3


def losses(module: DraftModule, batch: dict) -> tuple[torch.Tensor, dict[str, float], dict[str, int]]:
    """Loss and figures of a batch, with the same dice (diffusion masks by them)."""
    torch.manual_seed(3)
    loss, figures = module.losses(**batch)
    return loss, {n: float(v) for n, (v, _) in figures.items()}, {n: int(c) for n, (_, c) in figures.items()}


def data_for(module: DraftModule, folder: Path, **arguments) -> FeatureData:
    data = FeatureData(str(folder), **arguments)
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)
    return data


@pytest.fixture(scope="module")
def pocket():
    return Backbone.load("pocket", decoding=False)


TAPS = [1, 2, 3]  # the layers that EAGLE-3 reads of four
SHORT = [9, 14, 24, 3, 20, 11, 24, 17, 6, 22, 5, 13]
LONG = [20, 22, 60, 24, 25, 41, 7]


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """Rows that are one sample each."""
    folder = tmp_path_factory.mktemp("short") / "features"
    collect(tiny, Rows(SHORT), folder, settings_for(tiny, taps=TAPS))
    return folder


@pytest.fixture(scope="module")
def long(tiny, tmp_path_factory):
    """Rows of several samples, some of them."""
    folder = tmp_path_factory.mktemp("long") / "features"
    collect(tiny, Rows(LONG), folder, settings_for(tiny, taps=TAPS))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_short_rows_give_the_same_losses(tiny, short, monkeypatch, family, objective):
    module = module_on(tiny, family, monkeypatch, objective=objective)
    data, rows = data_for(module, short, batch_size=4), Rows(SHORT).rows("train")
    data.setup("fit")
    loader, seen = data.train_dataloader(), 0
    for numbers, batch in zip(list(loader.sampler), loader):
        online = collate([rows[n] for n in numbers], 0)
        assert torch.equal(batch["ids"], online["ids"]) and torch.equal(batch["mask"], online["mask"])
        assert ("taps" in batch) == (family is Eagle3)
        (loss, figures, counts), (other, expected, others) = losses(module, batch), losses(module, online)
        assert loss.item() == pytest.approx(other.item(), abs=1e-5, rel=1e-6) and counts == others
        assert figures == pytest.approx(expected, abs=1e-5, rel=1e-5)
        loss.backward()
        one = [p.grad.clone() for p in module.drafter.parameters() if p.grad is not None]
        module.zero_grad()
        other.backward()
        two = [p.grad.clone() for p in module.drafter.parameters() if p.grad is not None]
        module.zero_grad()
        assert one and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, two))
        seen += len(numbers)
    assert seen == len(rows)


@pytest.mark.parametrize("family", [Medusa, Cascade, Eagle3])
def test_long_rows_have_the_loss_of_the_whole_row(tiny, long, monkeypatch, family):
    """Summed over samples, weighted by anchors: exactly that of whole rows; EAGLE-3 sees no further than its sample."""
    module = module_on(tiny, family, monkeypatch)
    data, rows = data_for(module, long, batch_size=3), Rows(LONG).rows("train")
    data.setup("fit")
    assert len(data.samples("train")) > len(rows)

    def means(batches) -> tuple[dict[str, float], dict[str, int]]:
        sums, totals = {}, {}
        for batch in batches:
            _, figures, counts = losses(module, batch)
            for name, value in figures.items():
                sums[name] = sums.get(name, 0) + value * counts[name]
                totals[name] = totals.get(name, 0) + counts[name]
        return {name: sums[name] / totals[name] for name in sums if name != "loss"}, totals

    cut, counts = means(data.train_dataloader())
    whole, totals = means([collate([row], 0) for row in rows])
    assert counts == totals
    assert cut == pytest.approx(whole, abs=0.2 if family is Eagle3 else 1e-5)


def test_tokens_are_counted_as_often_as_they_are_learned(tiny, long, monkeypatch):
    data = data_for(module_on(tiny, Medusa, monkeypatch), long)
    learned = np.concatenate([ids[mask] for ids, mask in data.rows("train")])
    online = np.concatenate([ids[mask] for ids, mask in Rows(LONG).rows("train")])
    assert np.array_equal(np.bincount(learned), np.bincount(online))


def test_bfloat16_changes_little(tiny, short, tmp_path, monkeypatch):
    collect(tiny, Rows(SHORT), tmp_path / "half", settings_for(tiny, taps=TAPS, store="bfloat16"))
    for family in FAMILIES:
        module = module_on(tiny, family, monkeypatch)
        found = []
        for folder in (short, tmp_path / "half"):
            data = data_for(module, folder)
            batch = next(iter(data.train_dataloader()))
            found.append(losses(module, batch)[0].item())
        assert batch["hidden"].dtype == torch.bfloat16
        assert found[1] == pytest.approx(found[0], rel=0.01)


def test_agreed_tokens_are_those_of_the_backbone(tiny, long, monkeypatch):
    module = module_on(tiny, Medusa, monkeypatch)
    data = data_for(module, long, supervise="agreed")
    samples, batches = data.samples("train"), data.train_dataloader().dataset
    for number in range(len(samples)):
        batch = batches[[number]]
        ids, greedy, mask = (samples.read(number, name) for name in ("ids", "greedy", "mask"))
        expected = [bool(mask[t]) and (t == 0 or bool(greedy[t - 1] == ids[t])) for t in range(len(ids))]
        assert batch["mask"][0].tolist() == expected
    everything = data_for(module, long).rows("train")
    assert sum(m.sum() for _, m in data.rows("train")) < sum(m.sum() for _, m in everything)


def test_order_is_a_pure_function_of_seed_and_epoch_with_workers_too(tiny, long, monkeypatch):
    module = module_on(tiny, Eagle3, monkeypatch)

    def epoch(number: int, **arguments) -> list[dict]:
        data = data_for(module, long, batch_size=2, **arguments)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return list(loader)

    one, same, other, seeded = epoch(0), epoch(0, workers=2), epoch(1), epoch(0, seed=1)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, same, strict=True) for name in a)
    for different in (other, seeded):
        assert any(a["ids"].shape != b["ids"].shape or (a["ids"] != b["ids"]).any() for a, b in zip(one, different))


def test_features_of_another_backbone_or_for_other_heads_are_refused(tiny, short, long, monkeypatch, tmp_path):
    def told(module, folder) -> str:
        with pytest.raises(UserError) as error:
            data_for(module, folder).setup("fit")
        assert "\n" not in str(error.value)
        return str(error.value)

    other = tiny_backbone("llama", num_hidden_layers=4, rms_norm_eps=1e-3)
    other.tokenizer = tiny.tokenizer
    assert "collected from backbone" in told(module_on(other, Medusa, monkeypatch), short)
    bare = tmp_path / "bare"
    collect(tiny, Rows(SHORT), bare, settings_for(tiny, taps=[3, 1]))
    assert "--taps 1 2 3" in told(module_on(tiny, Eagle3, monkeypatch), bare)
    assert "run.py collect" in told(module_on(tiny, Medusa, monkeypatch), tmp_path / "nowhere")
    many = DraftModule(lambda backbone: Medusa(backbone, heads=9), "tiny")
    assert "leaves room for 7 heads" in told(many, long)
    data_for(many, short).setup("fit")  # nothing is cut there
    assert "language model" in told(SimpleNamespace(), short)


def test_a_drafter_takes_its_layers_from_more(tiny, short, tmp_path, monkeypatch):
    more = tmp_path / "more"
    collect(tiny, Rows(SHORT), more, settings_for(tiny, taps=[3, 0, 2, 1]))
    module = module_on(tiny, Eagle3, monkeypatch)
    one, two = (next(iter(data_for(module, folder).train_dataloader())) for folder in (short, more))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", [Medusa, Cascade, Eagle3])
def test_pocket_batches_and_losses_are_those_of_conversations(pocket, tmp_path, monkeypatch, family):
    module = module_on(pocket, family, monkeypatch)
    online = ConversationData(str(sums(tmp_path)), batch_size=16, max_length=64)
    online.tokenizer = pocket.tokenizer
    changes = {"taps": [1, 3, 5], "sample_size": 64, "stride": 32, "batch_tokens": 4096}
    collect(pocket, online, tmp_path / "out", settings_for(pocket, **changes))
    data = data_for(module, tmp_path / "out", batch_size=16)
    data.setup()
    for kind in ("train", "val", "test"):
        for one, two in zip(*(list(getattr(d, f"{kind}_dataloader")()) for d in (data, online)), strict=True):
            assert torch.equal(one["ids"], two["ids"]) and torch.equal(one["mask"], two["mask"])
            loss, figures, counts = losses(module, one)
            other, expected, others = losses(module, two)
            assert loss.item() == pytest.approx(other.item(), abs=1e-5, rel=1e-6) and counts == others
            assert figures == pytest.approx(expected, abs=1e-4, rel=1e-5)
    for split in ("validation", "test"):
        assert data.prompts(split, 3) == online.prompts(split, 3) and len(data.prompts(split, 2)) == 2
    with pytest.raises(UserError, match="no prompts of train"):
        data.prompts("train", 3)


def test_collect_fit_validate_test(tmp_path, capsys):
    out, features = tmp_path / "run", tmp_path / "features"
    conversations = sums(tmp_path)
    assert run.main(["collect", "--data", str(conversations), "--out", str(features)]) == 0
    assert "64 samples" not in capsys.readouterr().out
    conversations.unlink()  # the folder is enough
    chosen = [*COMMON, "--config", str(ROOT / "configs/data/features.yaml")]
    chosen += ["--config", str(ROOT / "configs/drafter/cascade.yaml"), *small(out, features)]
    assert run.main(["fit", *chosen]) == 0
    assert run.main(["validate", *chosen]) == 0
    assert run.main(["test", *chosen]) == 0
    figures = json.loads((out / "decode_benchmark.json").read_text())
    assert figures["identical"] == figures["prompts"] == 2
    content = bytearray((features / "train-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (features / "train-00000.safetensors").write_bytes(content)
    capsys.readouterr()
    assert run.main(["fit", *chosen, "--trainer.default_root_dir", str(tmp_path / "again")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "train-00000.safetensors' is damaged" in told
    eagle3 = ["--config", str(ROOT / "configs/drafter/eagle3.yaml"), "--trainer.default_root_dir", str(tmp_path / "e")]
    assert run.main(["fit", *chosen, *eagle3]) == 2
    assert "--taps 1 3 5" in capsys.readouterr().err
