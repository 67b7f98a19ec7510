"""Collected features: what is kept is what the backbone computes, each position counts once, and nothing gets lost."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import run
from mhc.distill import features, shards
from mhc.distill.features import collect
from mhc.distill.windows import Window, choose, cut, lead_of, most_heads, plan, windows_of
from mhc.errors import UserError
from tests.helpers.backbones import tiny_backbone
from tests.helpers.features import Rows, settings_for
from tests.helpers.runs import ROOT, sums


@pytest.fixture(scope="module")
def backbone():
    built = tiny_backbone("llama")
    built.tokenizer = SimpleNamespace(pad_token_id=0)
    return built


@pytest.mark.parametrize("size, stride", [(512, 256), (512, 500), (24, 8), (9, 4), (8, 1), (24, 20)])
def test_every_position_counts_once_and_sees_enough(size, stride):
    lead, heads = lead_of(size, stride), most_heads(size, stride)
    assert heads >= lead - 1
    for length in range(1, 3 * size):
        samples = cut(7, length, size, stride)
        counted = [t for s in samples for t in range(s.first, s.last)]
        assert counted == list(range(length))
        for sample in samples:
            assert sample.row == 7 and 0 <= sample.start <= sample.first < sample.last <= sample.stop <= length
            assert sample.stop - sample.start <= size
            assert sample.start == 0 or sample.first - sample.start >= lead  # what counts sees this far back
            assert sample.stop == length or sample.last - 1 + 1 + heads < sample.stop  # and its targets are there
            assert len(samples) == 1 or sample.stop - sample.start >= size // 2
        assert len(samples) == 1 if length <= size else len(samples) == -(-(length - size) // stride) + 1


def test_samples_without_anything_to_learn_are_left_out():
    mask = np.zeros(100, bool)
    mask[90:] = True
    kept = windows_of(0, mask, 24, 8)
    assert kept and all(s.last + 2 > 90 for s in kept)
    anchors = [t for t in range(98) if mask[t + 1] and mask[t + 2]]
    assert set(anchors) <= {t for s in kept for t in range(s.first, s.last)}


def test_max_samples_are_drawn_from_all_splits_whole_rows_first():
    splits = {
        name: [cut(row, 40, 24, 8) for row in range(count)]
        for name, count in (("train", 90), ("validation", 6), ("test", 4))
    }
    assert choose(splits, None) is splits and choose(splits, 300) is splits
    for most in (3, 7, 50, 299):
        chosen = choose(splits, most)
        counts = {name: sum(map(len, rows)) for name, rows in chosen.items()}
        assert most - 2 <= sum(counts.values()) <= most and all(counts.values())
        assert all(rows == sorted(rows) for rows in chosen.values())
    dealt = plan(choose(splits, 50), 100, 10_000)
    assert len({shard.name for shard in dealt}) == len(dealt) and sum(len(s.windows) for s in dealt) == 50
    owners = Counter((shard.split, row) for shard in dealt for row in {s.row for s in shard.windows})
    assert set(owners.values()) == {1}  # no row is read twice


def test_what_is_kept_is_what_the_backbone_computes(backbone, tmp_path):
    data = Rows([30, 20, 24, 61, 5, 40, 100, 3])
    manifest = collect(backbone, data, tmp_path / "out", settings_for(backbone))
    supervised = agreed = 0
    for split, rows in data.by_split.items():
        samples = shards.open_shards(tmp_path / "out", split)
        assert len(samples) == manifest["splits"][split]["samples"]
        wanted = [s for n, (_, mask) in enumerate(rows) for s in windows_of(n, mask, 24, 8)]
        for number, sample in enumerate(wanted):
            ids, mask = (torch.from_numpy(part) for part in rows[sample.row])
            features = backbone.features(ids[None].long(), (0, 1))
            greedy = backbone.model(ids[None].long()).logits[0].argmax(dim=-1)
            here = slice(sample.start, sample.stop)
            assert samples.lengths[number] == sample.stop - sample.start
            assert samples.counted[number].tolist() == [sample.first - sample.start, sample.last - sample.start]
            torch.testing.assert_close(samples.read(number, "hidden"), features.hidden[0, here], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(samples.read(number, "taps"), features.taps[0, here], atol=1e-5, rtol=1e-5)
            for name, whole in (("ids", ids), ("mask", mask), ("greedy", greedy)):
                assert torch.equal(samples.read(number, name).long(), whole[here].long()), name
        for ids, mask in rows:
            greedy = backbone.model(torch.from_numpy(ids)[None].long()).logits[0].argmax(dim=-1).numpy()
            supervised += mask[1:].sum()
            agreed += (mask[1:] & (greedy[:-1] == ids[1:])).sum()
        each = list(samples.each("ids", "hidden"))
        assert all(torch.equal(each[n][1], samples.read(n, "hidden")) for n in range(len(samples)))
    assert manifest["supervised"] == supervised and manifest["agreement"] == pytest.approx(
        agreed / supervised, abs=1e-6
    )


def test_shards_are_safetensors_and_say_where_they_come_from(backbone, tmp_path):
    from safetensors import safe_open

    collect(backbone, Rows([30, 20, 61, 5]), tmp_path / "out", settings_for(backbone, store="bfloat16"))
    with safe_open(tmp_path / "out" / "train-00000.safetensors", "np") as file:
        about = json.loads(file.metadata()["collected"])
        assert about["split"] == "train" and about["rows"] == [0, 1] and about["settings"]["taps"] == [0, 1]
        assert about["settings"]["fingerprint"] == backbone.fingerprint()
        assert file.get_tensor("rows")[0].tolist() == [0, 0] and file.get_tensor("offsets")[0] == 0
        assert file.get_slice("hidden").get_dtype() == "BF16"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


MANY = [30, 20] + [200] * 120  # rows that fill several shards of 1 MiB


def test_a_damaged_missing_or_foreign_shard_is_named_and_made_again(backbone, tmp_path):
    out, other, data = tmp_path / "out", tmp_path / "other", Rows(MANY)
    collect(backbone, data, out, settings_for(backbone))
    collect(backbone, Rows(MANY, seed=1), other, settings_for(backbone))
    whole = files(out)
    path, beside = out / "train-00002.safetensors", out / "train-00002.json"
    assert path.exists()

    def flip():
        content = bytearray(whole[path.name])
        content[5000] ^= 1
        path.write_bytes(content)

    def take_others():
        shutil.copy(other / path.name, path)
        shutil.copy(other / beside.name, beside)

    cases = {
        "damaged": flip,
        "is damaged": lambda: path.write_bytes(whole[path.name][:-1]),
        "is missing": path.unlink,
        "json' is missing": beside.unlink,
        "another collection": take_others,
        "cannot be read": lambda: beside.write_text("{"),
    }
    for named, damage in cases.items():
        damage()
        with pytest.raises(UserError, match=named) as told:
            shards.open_shards(out, "train")
        assert path.name.split(".")[0] in str(told.value) and "run.py collect" in str(told.value)
        before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors") if p != path}
        collect(backbone, data, out, settings_for(backbone))
        assert files(out) == whole, named
        assert before == {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors") if p != path}


def test_other_settings_and_other_folders_are_refused(backbone, tmp_path):
    out, data = tmp_path / "out", Rows([30, 20, 61, 5])
    collect(backbone, data, out, settings_for(backbone))
    whole = files(out)
    for changes, named in (
        ({"stride": 10}, "stride: 8, not 10"),
        ({"store": "float16"}, "store"),
        ({"taps": []}, "taps"),
    ):
        with pytest.raises(UserError, match=named):
            collect(backbone, data, out, settings_for(backbone, **changes))
    with pytest.raises(UserError, match="rows: "):  # the same path, but other texts in it
        collect(backbone, Rows([30, 20, 61, 5], seed=1), out, settings_for(backbone))
    assert files(out) == whole
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear mother")
    with pytest.raises(UserError, match="no collected features"):
        collect(backbone, data, tmp_path / "letters", settings_for(backbone))


def test_a_small_disk_is_refused_before_anything_is_written(backbone, tmp_path, monkeypatch, capsys):
    data, out = Rows(MANY), tmp_path / "deep" / "out"
    free = 2_000_000
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"1\.9 MiB are free: --max_samples (\d+) would fit") as told:
        collect(backbone, data, out, settings_for(backbone))
    assert not out.parent.exists()
    assert "x 393 bytes" in capsys.readouterr().err  # 3 x 32 numbers of 4 bytes, and 9
    most = int(str(told.value).split("--max_samples ")[1].split()[0])
    manifest = collect(backbone, data, out, settings_for(backbone, max_samples=most))
    assert sum(split["samples"] for split in manifest["splits"].values()) == most
    assert 0.9 * free < sum(path.stat().st_size for path in out.glob("train*")) <= free
    free = 2_000
    with pytest.raises(UserError, match="not even three"):
        collect(backbone, data, tmp_path / "none", settings_for(backbone))


def test_a_full_disk_stops_and_resumes(backbone, tmp_path, monkeypatch):
    data, out = Rows(MANY), tmp_path / "out"
    parts = shards._parts

    def full(tensors, metadata):
        pieces = parts(tensors, metadata)
        yield next(pieces)
        if (out / "train-00001.json").exists():
            raise OSError(28, "No space left on device")
        yield from pieces

    monkeypatch.setattr(shards, "_parts", full)
    with pytest.raises(UserError, match=r"train-00002.*No space left.*again"):
        collect(backbone, data, out, settings_for(backbone))
    assert not list(out.glob("*.writing"))
    with pytest.raises(UserError, match="not complete"):
        shards.open_shards(out, "train")
    monkeypatch.setattr(shards, "_parts", parts)
    collect(backbone, data, out, settings_for(backbone))
    collect(backbone, data, tmp_path / "at_once", settings_for(backbone))
    assert files(out) == files(tmp_path / "at_once")


def test_features_beyond_the_stored_precision_are_refused(backbone, tmp_path):
    loud = tiny_backbone("llama")
    loud.tokenizer = backbone.tokenizer
    with torch.no_grad():
        loud.model.get_input_embeddings().weight.mul_(1e7)
    with pytest.raises(UserError, match="beyond float16"):
        collect(loud, Rows([30, 20, 10]), tmp_path / "out", settings_for(loud, store="float16"))


KILLED = """
import os, signal, sys
from mhc.distill import shards
parts, made = shards._parts, []
def dying(tensors, metadata):
    made.append(1)
    for piece in parts(tensors, metadata):
        yield piece[: len(piece) // 2]
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece[len(piece) // 2 :]
shards._parts = dying
import run
run.main(sys.argv[1:])
"""


def test_killed_at_any_time_the_same_command_goes_on(tmp_path, capsys):
    """SIGKILL in the middle of the third shard; then the same command: the same bytes as without."""
    command = [
        "collect",
        "--data",
        str(sums(tmp_path)),
        "--shard_mib",
        "1",
        "--store",
        "float32",
        "--drafter",
        "eagle3",
    ]
    out = tmp_path / "out"
    died = subprocess.run([sys.executable, "-c", KILLED, *command, "--out", str(out)], cwd=ROOT, capture_output=True)
    assert died.returncode == -9, died.stderr
    left = {path.name for path in out.iterdir()}
    assert {"train-00001.json", "train-00002.safetensors.writing"} <= left and "train-00002.safetensors" not in left
    kept = (out / "train-00001.safetensors").stat().st_mtime_ns
    assert run.main([*command, "--out", str(out)]) == 0
    assert (out / "train-00001.safetensors").stat().st_mtime_ns == kept
    assert run.main([*command, "--out", str(tmp_path / "at_once")]) == 0
    assert files(out) == files(tmp_path / "at_once")
    told = capsys.readouterr().err
    assert "the backbone would say" in told and "bytes" in told
    assert run.main([*command, "--out", str(out), "--stride", "100"]) == 2
    assert "stride: 256, not 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--stride", "512"], "--stride"),
        (["--sample_size", "2"], "--sample_size"),
        (["--max_samples", "1"], "--max_samples"),
        (["--taps", "1", "9"], "layers 0 to 5"),
        (["--taps", "1", "--drafter", "eagle3"], "one of them"),
        (["--store", "int8"], "--store"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--limit", "8", "--out", "/dev/null/features"], "--out /dev/null/features"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, flags, named):
    assert run.main(["collect", "--out", str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and named in told and not (tmp_path / "out").exists()


def test_a_sample_names_its_place():
    assert cut(3, 30, 24, 8)[-1] == Window(row=3, start=8, stop=30, first=16, last=30)
