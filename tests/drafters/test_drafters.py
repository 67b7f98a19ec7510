"""What every drafter must keep: training and decoding see the same function, and heads are apart."""

import copy
import json
from functools import partial

import pytest
import torch

from mhc.backbone.model import Backbone, Features
from mhc.checkpoints.heads_folder import for_decoding, load_drafter, require_match, save_drafter
from mhc.drafters import Cascade, Diffusion, Eagle3, Medusa
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.trees.shapes import DynamicTree, FixedTree
from tests.helpers.drafters import HEADS, VARIANTS, randomised
from tests.helpers.killed_runs import tiny_model


@pytest.mark.parametrize("family", VARIANTS)
def test_training_and_decoding_agree(backbones, family):
    """For the same context a head's logits in training and along a path of a tree differ by at most 1e-5."""
    backbone = backbones("llama")
    drafter = randomised(VARIANTS[family](backbone), 0.1).eval()
    ids = torch.randint(0, backbone.vocabulary_size, (2, 20))
    features = backbone.features(ids, drafter.taps)
    for row in range(2):
        for t in (0, 7, 20 - HEADS - 2):
            anchors = torch.tensor([row]), torch.tensor([t])
            with torch.no_grad():
                trained = [drafter.unembed(k, guess.hidden) for k, guess in enumerate(drafter(features, ids, anchors))]
                memory = drafter.allocate(1, 32)
                for first, last in ((0, t // 2), (t // 2, t + 1)):  # read in two goes, as prefill and round
                    if last > first:
                        new = features.at(torch.tensor([[row]]), torch.arange(first, last)[None])
                        following = ids[row : row + 1, first + 1 : last + 1]
                        drafter.observe(memory, slice(0, 1), new, following, first, torch.tensor([last - first]))
                state = drafter.start_tree(memory, slice(0, 1))
                for head in range(HEADS):
                    # the true token among wrong siblings, as in a tree; row 1 of the state is the true one
                    true = ids[row, t + 1 + head]
                    tokens = true[None, None] if head == 0 else torch.stack([(true + 1) % 61, true])[None]
                    parents = torch.tensor([[0] if head == 0 else [0, 0] if head == 1 else [0, 1]])
                    logits, state = drafter.draft_level(state, tokens, parents)
                    torch.testing.assert_close(logits[0, -1:], trained[head], atol=1e-5, rtol=1e-5)


def test_heads_do_not_share_weights(backbones):
    """`[ResBlock()] * n` would: a gradient of one head must leave the others alone."""
    for build in VARIANTS.values():
        drafter = build(backbones("llama"))
        assert len({p.data_ptr() for p in drafter.parameters()}) == len(list(drafter.parameters()))


def test_medusa_ignores_its_parent_and_the_cascade_does_not(backbones):
    backbone = backbones("llama")
    hidden = torch.randn(1, 1, backbone.width)
    for family, differs in ((Medusa, False), (Cascade, True)):
        drafter = randomised(family(backbone, HEADS), 0.1).eval()
        memory = drafter.allocate(1, 8)
        drafter.observe(memory, slice(0, 1), Features(hidden), torch.tensor([[3]]), 0, torch.tensor([1]))
        with torch.no_grad():
            first, _ = drafter.draft_level(
                drafter.start_tree(memory, slice(0, 1)), torch.tensor([[3]]), torch.tensor([0])
            )
            second, _ = drafter.draft_level(
                drafter.start_tree(memory, slice(0, 1)), torch.tensor([[4]]), torch.tensor([0])
            )
        assert bool((first != second).any()) == differs


@pytest.mark.parametrize("family", VARIANTS)
def test_saved_heads_come_back(backbones, tmp_path, family):
    backbone = backbones("llama")
    drafter = randomised(VARIANTS[family](backbone), 0.1).eval()
    tree = FixedTree([[0], [1], [0, 0]])
    save_drafter(tmp_path, drafter, tree)
    loaded, loaded_tree = load_drafter(tmp_path, backbone)
    assert loaded_tree.choices == tree.choices
    assert type(loaded) is type(drafter)
    for (name, before), (_, after) in zip(drafter.state_dict().items(), loaded.state_dict().items()):
        assert torch.equal(before, after), name
    stored = (tmp_path / "drafter.safetensors").stat().st_size
    assert stored < 4 * sum(p.numel() for p in drafter.parameters()) + 10_000  # no backbone in there


@pytest.mark.parametrize(
    "drafter, old",
    [
        (partial(Diffusion, num_layers=2), {"heads": HEADS, "layers": 2}),
        (partial(Eagle3, taps=[0, 1, 1]), {"heads": HEADS, "layers": [0, 1, 1]}),
    ],
)
def test_heads_saved_under_old_argument_names_load(backbones, tmp_path, drafter, old):
    """drafter.json, and the description in a checkpoint, from before each name had one meaning."""
    backbone = backbones("llama")
    saved = randomised(drafter(backbone, HEADS))
    save_drafter(tmp_path, saved, FixedTree.chain(HEADS))
    description = json.loads((tmp_path / "drafter.json").read_text())
    for name in ("draft_length", "num_layers", "taps"):
        description["arguments"].pop(name, None)
    description["arguments"] |= old
    (tmp_path / "drafter.json").write_text(json.dumps(description))
    loaded, _ = load_drafter(tmp_path, backbone)
    assert loaded.arguments == saved.arguments
    require_match(description, saved, "the checkpoint")
    with pytest.raises(UserError, match="draft_length=9"):
        require_match(description | {"arguments": old | {"heads": 9}}, saved, "the checkpoint")


def test_heads_find_a_backbone_named_relatively_from_anywhere(tmp_path, monkeypatch):
    """By the folders that they lie in, where it is not here; and what is here goes before."""
    tiny_model(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    heads = tmp_path / "there/runs/heads"
    save_drafter(heads, Medusa(Backbone.load("backbone"), HEADS), FixedTree.chain(HEADS))
    assert load_drafter(heads)[0].backbone.name == "backbone"
    monkeypatch.chdir(tmp_path)
    assert load_drafter("there/runs/heads")[0].backbone.name == str(tmp_path / "there/backbone")


def test_wrong_or_damaged_heads_are_refused(backbones, tmp_path):
    save_drafter(tmp_path, Cascade(backbones("llama"), HEADS), FixedTree.chain(HEADS))
    with pytest.raises(UserError, match="belongs to backbone"):
        load_drafter(tmp_path, backbones("qwen3"))
    with pytest.raises(UserError, match="no heads in"):
        load_drafter(tmp_path / "elsewhere", backbones("llama"))
    weights = bytearray((tmp_path / "drafter.safetensors").read_bytes())
    weights[-3] ^= 1  # one flipped bit
    (tmp_path / "drafter.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="sha256"):
        load_drafter(tmp_path, backbones("llama"))
    (tmp_path / "drafter.json").write_text('{"drafter": "os.system"')
    with pytest.raises(UserError, match="damaged"):
        load_drafter(tmp_path, backbones("llama"))


@pytest.mark.parametrize("family", VARIANTS)
def test_heads_trained_in_fp32_decode_in_the_precision_of_their_backbone(backbones, family):
    backbone = Backbone(copy.deepcopy(backbones("llama").model).to(torch.bfloat16))
    trained = VARIANTS[family](backbone)
    heads = for_decoding(trained)
    assert {p.dtype for p in heads.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    for tree in (FixedTree.chain(HEADS), DynamicTree(2, HEADS, 6)):
        assert len(Engine(backbone, heads, tree).generate([5, 9, 3], 12).token_ids) == 12
