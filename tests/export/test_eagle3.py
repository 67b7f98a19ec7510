"""EAGLE-3 in the engines' formats: read back logit by logit, and published checkpoints taken over."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file

from mhc.drafters import Eagle3, Medusa
from mhc.errors import UserError
from mhc.export.eagle3 import IDS, eagle3_sglang, eagle3_vllm, speculators
from mhc.export.eagle3_import import import_eagle3
from mhc.export.eagle3_reading import eagle3_difference, read_eagle3_sglang, read_eagle3_vllm, read_speculators
from tests.helpers.backbones import tiny_backbone

FORMATS = {
    "vllm": (eagle3_vllm, read_eagle3_vllm),
    "sglang": (eagle3_sglang, read_eagle3_sglang),
    "speculators": (speculators, read_speculators),
}
DRAFTERS = {
    "default taps": {},
    "few words, layers in disorder": {"taps": [5, 1, 3], "draft_vocabulary": 20, "draft_length": 4},
    "a layer twice": {"taps": [0, 4, 4], "draft_length": 3},
    "another layer": {
        "attention_heads": 2,
        "head_width": 10,
        "inner_width": 20,
        "theta": 500.0,
        "epsilon": 1e-2,
        "draft_length": 3,
    },
}


@pytest.fixture(scope="module")
def backbone():
    """Deep enough for the published layers: 2, 4, 5 of 8."""
    return tiny_backbone("llama", num_hidden_layers=8)


def trained(backbone, **arguments) -> Eagle3:
    """Heads of which no tensor is what it was at the start, and no two are alike."""
    torch.manual_seed(1)
    drafter = Eagle3(backbone, **arguments)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    drafter.choose_vocabulary(torch.randint(0, 99, (backbone.vocabulary_size,)))
    return drafter.eval()


def logits(drafter: Eagle3) -> torch.Tensor:
    """(K,A,V) over random tokens."""
    backbone = drafter.backbone
    ids = torch.randint(0, backbone.vocabulary_size, (2, 20), generator=torch.Generator().manual_seed(3))
    anchors = torch.tensor([0, 0, 1]), torch.tensor([0, 9, 5])
    with torch.no_grad():
        guesses = drafter(backbone.features(ids, drafter.taps), ids, anchors)
        return torch.stack([drafter.unembed(head, guess.hidden) for head, guess in enumerate(guesses)])


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", FORMATS)
def test_an_engine_drafts_what_training_computes(backbone, tmp_path, name, drafter):
    write, read = FORMATS[name]
    heads = trained(backbone, **DRAFTERS[drafter])
    command = shlex.split(write(heads, tmp_path))
    assert str(tmp_path) in " ".join(command)
    assert eagle3_difference(heads, read(tmp_path, backbone)) < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_the_comparison_finds_every_single_tensor_and_setting(backbone, tmp_path, name):
    """What is exported wrongly shows in the logits, whichever tensor it is."""
    write, read = FORMATS[name]
    heads = trained(backbone, draft_vocabulary=20, draft_length=3)
    write(heads, tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    for key, tensor in whole.items():
        if tensor.is_floating_point():
            save_file(whole | {key: tensor * 1.5 + 0.1}, path)
            assert eagle3_difference(heads, read(tmp_path, backbone), length=8) > 1e-3, key
    save_file(whole, path)
    at, config = tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text())
    layer = config.get("transformer_layer_config", config)
    for key, value in (("rms_norm_eps", 0.5), ("rope_theta", 30.0), ("head_dim", 16)):
        changed = layer | {key: value}
        if key == "rope_theta":
            changed["rope_parameters"] = {"rope_type": "default", "rope_theta": value}
        if key == "head_dim":
            changed["num_attention_heads"] = changed["num_key_value_heads"] = 2
        at.write_text(json.dumps(config | ({"transformer_layer_config": changed} if layer is not config else changed)))
        assert eagle3_difference(heads, read(tmp_path, backbone), length=8) > 1e-3, key


@pytest.mark.parametrize("name", FORMATS)
def test_each_renamed_missing_extra_or_wrongly_shaped_tensor_is_an_error(backbone, tmp_path, name):
    write, read = FORMATS[name]
    write(trained(backbone, draft_vocabulary=20), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    assert len(whole) == 15
    for key, tensor in whole.items():
        rest = {other: value for other, value in whole.items() if other != key}
        for broken, told in (
            (rest, "lacks"),
            (rest | {f"model.{key}": tensor}, "unread"),
            (rest | {key: tensor[:-1].clone()}, "wants"),
        ):
            save_file(broken, path)
            with pytest.raises(UserError, match=told):
                read(tmp_path, backbone)
    for more in ("embed_tokens.weight", "input_norm.weight", "layers.1.mlp.up_proj.weight"):
        save_file(whole | {more: torch.ones(2)}, path)
        with pytest.raises(UserError, match="unread"):
            read(tmp_path, backbone)
    save_file(whole | {"d2t": whole["d2t"] + 1}, path)
    with pytest.raises(UserError, match="d2t"):
        read(tmp_path, backbone)


def test_layers_are_counted_as_each_engine_counts_them(backbone, tmp_path):
    """Published layers need no ids; others are inputs in vLLM and, less 1, outputs in SGLang."""
    configs = {}
    for taps, key in ((None, "usual"), ([1, 3, 6], "own")):
        for name, (write, _) in FORMATS.items():
            write(trained(backbone, taps=taps), tmp_path / key / name)
            configs[key, name] = json.loads((tmp_path / key / name / "config.json").read_text())
    for name in ("vllm", "sglang"):
        assert IDS not in configs["usual", name] and "eagle_config" not in configs["usual", name]
    assert configs["usual", "speculators"][IDS] == [2, 4, 5]
    assert configs["own", "vllm"][IDS] == configs["own", "speculators"][IDS] == [1, 3, 6]
    assert configs["own", "sglang"]["eagle_config"][IDS] == [0, 2, 5]
    # on the smallest backbones the published layers collide, so that engines must be told
    shallow = tiny_backbone("llama", num_hidden_layers=6)
    eagle3_vllm(trained(shallow), tmp_path / "shallow")
    assert json.loads((tmp_path / "shallow" / "config.json").read_text())[IDS] == [1, 3, 5]
    told = json.loads((tmp_path / "shallow" / "config.json").read_text())
    (tmp_path / "shallow" / "config.json").write_text(json.dumps({k: v for k, v in told.items() if k != IDS}))
    with pytest.raises(UserError, match="hidden states"):
        read_eagle3_vllm(tmp_path / "shallow", shallow)


def test_off_by_one_layers_show(backbone, tmp_path):
    heads = trained(backbone, taps=[1, 3, 6])
    eagle3_sglang(heads, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["eagle_config"][IDS] = [1, 3, 6]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert eagle3_difference(heads, read_eagle3_sglang(tmp_path, backbone)) > 1e-2


def test_the_context_is_told_to_sglang(tmp_path):
    """Whose window leaves a position's own key out; no word of it where nothing is longer."""
    long = tiny_backbone("llama", num_hidden_layers=8, max_position_embeddings=4096)
    command = shlex.split(eagle3_sglang(trained(long), tmp_path))
    assert command[command.index("--speculative-draft-window-size") + 1] == "2047"
    assert "window" not in eagle3_sglang(trained(long, context=4096), tmp_path)


@pytest.mark.parametrize("architecture, reason", [("gemma2", "gemma2"), ("gpt_neox", "gpt_neox"), ("olmo2", "olmo2")])
@pytest.mark.parametrize("name", FORMATS)
def test_what_an_engine_cannot_serve_is_refused(backbones, tmp_path, name, architecture, reason):
    with pytest.raises(UserError, match=f"{reason}.*run.py serve"):
        FORMATS[name][0](Eagle3(backbones(architecture)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_heads_and_a_single_layer_are_refused(backbone, tmp_path):
    with pytest.raises(UserError, match="Medusa"):
        eagle3_vllm(Medusa(backbone), tmp_path)
    alone = trained(backbone, taps=[3, 3, 3])
    with pytest.raises(UserError, match="fused already"):
        eagle3_sglang(alone, tmp_path)
    eagle3_vllm(alone, tmp_path)
    assert eagle3_difference(alone, read_eagle3_vllm(tmp_path, backbone)) < 1e-5


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_imported_as_it_was(backbone, tmp_path, name, drafter):
    heads = trained(backbone, **DRAFTERS[drafter])
    FORMATS[name][0](heads, tmp_path)
    found, expected = logits(import_eagle3(tmp_path, backbone)), logits(heads)
    scale = expected[expected.isfinite()].abs().max()
    torch.testing.assert_close(found[: heads.draft_length] / scale, expected / scale, atol=1e-6, rtol=0)


# ---- as published: SafeAILab's names and configs, grouped-query attention, torch files


def published(backbone, folder, kind: str = "bin", tensors: dict | None = None, **config):
    """A checkpoint as SafeAILab publishes them: fewer heads of keys than of queries, half precision."""
    torch.manual_seed(5)
    width, vocabulary, drafted = backbone.width, backbone.vocabulary_size, 25
    ids = torch.randperm(vocabulary)[:drafted].sort().values
    shapes = {
        "fc.weight": (width, 3 * width),
        "midlayer.self_attn.q_proj.weight": (8 * 6, 2 * width),
        "midlayer.self_attn.k_proj.weight": (2 * 6, 2 * width),
        "midlayer.self_attn.v_proj.weight": (2 * 6, 2 * width),
        "midlayer.self_attn.o_proj.weight": (width, 8 * 6),
        "midlayer.mlp.gate_proj.weight": (40, width),
        "midlayer.mlp.up_proj.weight": (40, width),
        "midlayer.mlp.down_proj.weight": (width, 40),
        "lm_head.weight": (drafted, width),
    }
    norms = [f"midlayer.{name}.weight" for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")]
    whole = {name: (torch.randn(shape) * 0.2).bfloat16() for name, shape in shapes.items()}
    whole |= {name: (1 + torch.randn(width) * 0.3).bfloat16() for name in [*norms, "norm.weight"]}
    marked = torch.zeros(vocabulary, dtype=torch.bool)
    marked[ids] = True
    whole |= {"d2t": ids - torch.arange(drafted), "t2d": marked}
    whole |= tensors or {}
    said = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 40,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
        "draft_vocab_size": drafted,
        "max_position_embeddings": 2048,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(said | config))
    whole = {name: tensor for name, tensor in whole.items() if tensor is not None}
    if kind == "bin":
        torch.save(whole, folder / "pytorch_model.bin")
    else:
        save_file(whole, folder / "model.safetensors")
    return whole


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_published_checkpoint_drafts_as_engines_run_it(backbone, tmp_path, kind):
    """Its grouped-query attention, read by the engine's rules, and our heads with the repeated keys and values."""
    whole = published(backbone, tmp_path, kind)
    save_file(whole, tmp_path / "model.safetensors")  # for the engine's reader
    heads = import_eagle3(tmp_path, backbone)
    assert heads.taps == (2, 4, 5) and heads.midlayer.theta == 500000.0 and heads.norm.eps == 1e-3
    assert eagle3_difference(heads, read_eagle3_vllm(tmp_path, backbone)) < 1e-5
    eagle3_vllm(heads, tmp_path / "again")
    assert eagle3_difference(heads, read_eagle3_vllm(tmp_path / "again", backbone)) < 1e-5


def test_an_embedding_is_taken_if_it_is_the_backbones(backbone, tmp_path):
    shared = backbone.embed(torch.arange(backbone.vocabulary_size)).clone()
    published(backbone, tmp_path, tensors={"embed_tokens.weight": shared.half()})
    expected = logits(import_eagle3(tmp_path, backbone))
    published(backbone, tmp_path)
    assert torch.equal(logits(import_eagle3(tmp_path, backbone)), expected)
    published(backbone, tmp_path, tensors={"embed_tokens.weight": shared.flip(0)})
    with pytest.raises(UserError, match="embed_tokens of its own"):
        import_eagle3(tmp_path, backbone)


def test_draft_tokens_in_disorder_are_sorted_with_their_rows(backbone, tmp_path):
    whole = published(backbone, tmp_path)
    expected = logits(import_eagle3(tmp_path, backbone))
    order, place = torch.randperm(25), torch.arange(25)
    disorder = {"d2t": (whole["d2t"] + place)[order] - place, "lm_head.weight": whole["lm_head.weight"][order]}
    published(backbone, tmp_path, tensors=disorder | {"t2d": None})
    assert torch.equal(logits(import_eagle3(tmp_path, backbone)), expected)


def test_without_an_lm_head_the_backbones_is_shared(backbone, tmp_path):
    published(backbone, tmp_path, tensors=dict.fromkeys(("lm_head.weight", "d2t", "t2d")))
    heads = import_eagle3(tmp_path, backbone)
    assert heads.vocabulary is None and torch.equal(heads.lm_head.weight, backbone.unembedding)


def test_layer_ids_are_taken_by_inputs_and_asked_for_where_they_are_open(backbone, tmp_path):
    for ids in ([2, 4, 5], [1, 3, 4]):  # of vLLM, of SGLang: the same layers
        published(backbone, tmp_path, eagle_config={IDS: ids})
        assert import_eagle3(tmp_path, backbone).taps == (2, 4, 5)
    published(backbone, tmp_path, eagle_config={IDS: [0, 3, 6]})
    with pytest.raises(UserError, match="give `layers`"):
        import_eagle3(tmp_path, backbone)
    assert import_eagle3(tmp_path, backbone, layers=[1, 4, 7]).taps == (1, 4, 7)


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"norm_before_residual": True}, "norm_before_residual"),
        ({"eagle_config": {"norm_before_fc": True}}, "norm_before_fc"),
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"model_type": "qwen3"}, "model_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"hidden_size": 64}, "hidden_size"),
        ({"target_hidden_size": 64}, "target_hidden_size"),
        ({"vocab_size": 99}, "vocab_size"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"num_key_value_heads": 4}, "k_proj"),
        ({"num_attention_heads": "many"}, "damaged"),
        ({"tensors": {"d2t": None}}, "lacks d2t"),
        ({"tensors": {"fc.weight": None}}, "fc.weight"),
        ({"tensors": {"midlayer.self_attn.q_norm.weight": torch.ones(6)}}, "q_norm"),
        ({"tensors": {"d2t": torch.zeros(25, dtype=torch.long) + 60}}, "d2t"),
        ({"tensors": {"t2d": torch.ones(61, dtype=torch.bool)}}, "t2d"),
    ],
)
def test_what_cannot_be_our_heads_is_refused_with_the_reason(backbone, tmp_path, config, reason):
    published(backbone, tmp_path, **config)
    with pytest.raises(UserError, match=reason):
        import_eagle3(tmp_path, backbone)


def test_nothing_in_a_torch_file_is_executed(backbone, tmp_path):
    published(backbone, tmp_path)
    torch.save({"fc.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="executed"):
        import_eagle3(tmp_path, backbone)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no heads in"):
        import_eagle3(tmp_path, backbone)


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("executed",)
