"""Tiny random backbones of every architecture, and drafters whose guesses are known beforehand."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PL_GLOBAL_SEED", None)

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Cascade, Drafter
from mhc.engine import Engine
from mhc.trees.shapes import FixedTree

torch.set_num_threads(1)  # tiny models lose more to threads than they gain

VOCABULARY = 61
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
ARCHITECTURES = {
    "llama": SIZES,
    "mistral": SIZES | dict(sliding_window=7),
    "qwen2": SIZES | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": SIZES | dict(head_dim=8),
    "qwen3_moe": SIZES | MOE | dict(head_dim=8),
    "mixtral": SIZES | dict(num_local_experts=4, num_experts_per_tok=2),
    "gemma2": SIZES | dict(head_dim=8, sliding_window=6),
    "gemma3_text": SIZES | dict(head_dim=8, sliding_window=6),
    "phi3": SIZES,
    "olmo2": SIZES,
    "gpt_neox": {key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    "gpt_oss": SIZES | dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
}


def tiny_backbone(name: str, **changes) -> Backbone:
    """A random model of this architecture, its weights scaled up so that its choices are not ties."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(ARCHITECTURES[name] | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return Backbone(model)


@pytest.fixture(autouse=True)
def forgotten_seed():
    """run.py leaves its seed in the environment, where Lightning's strategies find it and start over from it: a later
    test would draw other weights in its processes than in its own."""
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(scope="session")
def backbones():
    """Backbones by architecture name, each built once."""
    built = {}

    def get(name: str) -> Backbone:
        if name not in built:
            built[name] = tiny_backbone(name)
        return built[name]

    return get


@pytest.fixture(scope="module")
def tiny():
    """A random backbone deep enough to be tapped, with as much of a tokenizer as padding needs."""
    built = tiny_backbone("llama", num_hidden_layers=4)
    built.tokenizer = SimpleNamespace(pad_token_id=0)
    return built


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Untrained heads on the pocket, in a folder."""
    folder = tmp_path_factory.mktemp("heads")
    save_drafter(folder, Cascade(Backbone.load("pocket"), heads=4), FixedTree.chain(4))
    return folder


def memorise(drafter: Drafter, prompts: list[list[int]], length: int, steps: int = 40) -> None:
    """Heads that have learned by heart what the backbone answers to these prompts."""
    backbone = drafter.backbone
    texts = [prompts[n] + a.token_ids for n, a in sorted(Engine(backbone).generate_ids(prompts, length))]
    optimizer = torch.optim.Adam([p for p in drafter.parameters() if p.requires_grad], lr=2e-3)
    for step in range(steps):
        number = step % len(texts)
        ids = torch.tensor([texts[number]])
        with torch.no_grad():
            features = backbone.features(ids, drafter.taps)
        at = torch.arange(len(prompts[number]) - 1, ids.shape[1] - drafter.heads - 1)
        guesses = drafter(features, ids, (torch.zeros_like(at), at))
        losses = [cross_entropy(drafter.unembed(k, g.hidden), ids[0, at + 2 + k]) for k, g in enumerate(guesses)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()


class Scripted(Drafter):
    """A drafter that knows the whole text of each row and guesses `right` tokens of it in every tree.

    With right=99 it drives acceptance to its limit, with right=0 it is the adversary. What it says
    depends on `observe`: should the engine report accepted tokens wrongly, its drafts go wrong as well.
    A row's text is recognised by the length of its prompt.
    """

    def __init__(self, backbone: Backbone, texts: list[list[int]], prompts: list[int], heads: int = 4, right: int = 99):
        super().__init__(backbone, heads)
        self.texts, self.right = dict(zip(prompts, texts)), right

    def forward(self, features, ids, anchors):
        raise NotImplementedError

    def unembed(self, head, hidden):
        raise NotImplementedError

    def unembedding(self, head):
        raise NotImplementedError

    def allocate(self, rows, capacity):
        return [(0, 0)] * rows  # (length of the prompt, positions read) of each row

    def observe(self, memory, rows, accepted, next_ids, start, counts):
        starts = start.tolist() if isinstance(start, torch.Tensor) else [start] * len(counts)
        for row, first, count in zip(range(rows.start, rows.stop), starts, counts.tolist()):
            memory[row] = (memory[row][0] if first else count, first + count)

    def move(self, memory, source, target):
        memory[target] = memory[source]

    def start_tree(self, memory, rows):
        return 0, memory[rows]

    def draft_level(self, state, tokens, parents):
        head, rows = state
        logits = torch.zeros(*tokens.shape, self.backbone.vocabulary_size)
        for row, (prompt, done) in enumerate(rows):
            text, at = self.texts.get(prompt, []), done + 1 + head  # the root stands at `done`; idle rows have no text
            token = text[at] if at < len(text) else 0
            logits[row, :, (token + (head >= self.right)) % self.backbone.vocabulary_size] = (
                99.0  # louder than any noise
            )
        return logits, (head + 1, rows)
