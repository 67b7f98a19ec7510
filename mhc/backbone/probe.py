"""Does decoding here give what the model itself computes? Measured once, when a model of a type that the tests do not hold
is loaded: two uneven rows, a branching tree and padded and packed training rows, against the model's own uncached forward.

What differs, or raises, is refused in one line before a token is decoded or an epoch trained. Each check is a few dozen
tokens long, so windows and blocks of thousands of tokens would go unnoticed: the same is run on a small random copy of the
model in which they are a few tokens long.
"""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mhc.backbone.packing import PADDING, Packing
from mhc.errors import UserError

# Model types that the tests decode, train and export throughout (tests/helpers/backbones.py), of any size and setting.
HELD = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"})
LONG, SHORT = 12, 4  # tokens of the two prompts
TOLERANCE, COARSE = 1e-3, 0.1  # of the largest logit; the latter in half precision, and where weights are quantised
DEPTH = [0, 1, 1, 2, 2, 2]  # of the nodes of the tree
LEAVES = [[0, 1, 3], [0, 1, 4], [0, 2, 5]]  # the paths from its root to its leaves
LENGTHS = re.compile("window|block|chunk|stride")  # settings that count tokens
SPAN, COPIED = 6, 300_000_000  # such a setting in the copy, in tokens; the largest copy that is made, in weights


@contextmanager
def refusing(kind: str, what: Callable[[], str]) -> Iterator[None]:
    """Turn whatever is raised inside into one line about models of this type; `what` names the part that failed."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a model's code may raise anything
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"models of type {kind} are not supported: {what()} fails ({type(error).__name__}: {reason})"
        ) from error


@torch.no_grad()
def probe(backbone: Any) -> None:
    """Raise UserError where a forward of this Backbone (untyped, which would be an import circle) differs from the model's own,
    naming the model type and what differs."""
    checks = _Checks(backbone)
    with refusing(backbone.model.config.model_type, lambda: checks.what):
        checks.run()


def probe_copy(config: PreTrainedConfig, build: Callable[[PreTrainedModel], Any]) -> None:
    """`probe` a small random model of this kind, where one can be made; build: makes a Backbone of a model."""
    try:
        small = _shortened(config)
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(small).num_parameters()
        if size > COPIED:
            return
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
    except Exception:  # a config that is not valid at other sizes: the model itself is probed
        return
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)  # so that attention is no mere average
    with refusing(config.model_type, lambda: "a small copy"):
        backbone = build(model)
    probe(backbone)


def _shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    """This config with two layers (the first and the last kind), few experts and tokens, and windows of SPAN tokens."""
    whole = copy.deepcopy(config)
    text = whole.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, key, [value[0], value[-1]])
        elif type(value) is int and LENGTHS.search(key) and value > SPAN:
            setattr(text, key, SPAN)
        elif type(value) is int and re.search("num.*experts$|n_routed_experts", key) and value > 4:
            setattr(text, key, 4)
    text.num_hidden_layers, text.vocab_size = 2, min(text.vocab_size, 128)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, key, None)
    return whole


class _Checks:
    """The comparisons of one model. what: the forward under way, for messages."""

    def __init__(self, backbone: Any):
        self.backbone, self.what = backbone, "its own forward"
        exact = backbone.full_precision and backbone.quantised is None
        self.tolerance = TOLERANCE if exact else COARSE

    def run(self) -> None:
        device = self.backbone.device
        token = torch.arange(LONG + len(DEPTH), device=device)
        tokens = (7 + 13 * token + token**2) % self.backbone.vocabulary_size
        self.prompts, self.tree = [tokens[:LONG], tokens[1 : 1 + SHORT]], tokens[-len(DEPTH) :]
        self.leaves = torch.tensor(LEAVES, device=device)
        with _stock_attention(self.backbone):
            paths = self.tree[self.leaves]
            rows = [torch.cat([prompt.expand(len(LEAVES), -1), paths], dim=1) for prompt in self.prompts]
            self.own = [self.backbone.model(input_ids=row, use_cache=False).logits for row in rows]
        self.decoding()
        self.training()

    def same(self, ours: Tensor, own: Tensor) -> None:
        """Raise UserError unless logits of this project are the model's own."""
        difference = float((ours - own).abs().max() / own.abs().max().clamp(min=1e-6))
        if not difference <= self.tolerance:
            raise UserError(
                f"models of type {self.backbone.model.config.model_type} are not supported: {self.what} gets other "
                f"logits than the model's own forward gives (by {difference:.1%} of the largest)"
            )

    def training(self) -> None:
        """Rows with right padding, and packed rows."""
        backbone, (long, short) = self.backbone, self.prompts
        self.what = "a training row beside a shorter one"
        hidden = backbone.features(self.padded()).hidden
        self.same(backbone.unembed(hidden[0]), self.own[0][0, :LONG])
        self.what = "a training row with right padding"
        self.same(backbone.unembed(hidden[1, :SHORT]), self.own[1][0, :SHORT])
        self.what = "a packed training row"
        segments = torch.tensor([[0] * SHORT + [1] * LONG + [PADDING]], device=backbone.device)
        hidden = backbone.features(torch.cat([short, long, long[-1:]])[None], packing=Packing(segments)).hidden[0]
        self.same(backbone.unembed(hidden[:SHORT]), self.own[1][0, :SHORT])
        self.same(backbone.unembed(hidden[SHORT:-1]), self.own[0][0, :LONG])

    def decoding(self) -> None:
        """Prefill of uneven rows, a tree, one of its paths committed, its last token read again, and a row alone."""
        backbone, own, leaves, device = self.backbone, self.own, self.leaves, self.backbone.device
        self.what = "a prompt beside a longer one"
        cache = backbone.cache(2, LONG + len(DEPTH) + 1)
        positions = torch.arange(LONG, device=device).expand(2, -1)
        last = torch.tensor([LONG, SHORT], device=device) - 1
        logits, _ = backbone.decode(self.padded(), positions, cache, None, at=last)
        self.same(logits[:, 0], torch.stack([own[0][0, LONG - 1], own[1][0, SHORT - 1]]))
        cache.advance([LONG, SHORT])
        self.what = "a branching tree"
        depth, ancestors = (
            torch.tensor([DEPTH], device=device),
            torch.zeros(1, len(DEPTH), len(DEPTH), device=device) > 0,
        )
        for path in LEAVES:
            for level, node in enumerate(path):
                ancestors[0, node, path[: level + 1]] = True
        logits, _ = backbone.decode(self.tree.expand(2, -1), *backbone.tree_inputs(cache, 2, ancestors, depth))
        self.same(logits[:, leaves], torch.stack([own[0][:, LONG:], own[1][:, SHORT:]]))
        self.what = "a token behind an accepted path"
        accepted = leaves[1:2].expand(2, -1)
        cache.commit(accepted)
        cache.advance([2, 2])  # the leaf is read again, alone
        token, root_only = self.tree[accepted[:, -1:]], (ancestors[:, :1, :1], depth[:, :1])
        logits, _ = backbone.decode(token, *backbone.tree_inputs(cache, 2, *root_only))
        self.same(logits[:, 0], torch.stack([own[0][1, -1], own[1][1, -1]]))
        self.what = "a row alone"
        cache.set_active(1, 2)
        logits, _ = backbone.decode(token[:1], *backbone.tree_inputs(cache, 1, *root_only))
        self.same(logits[:, 0], own[1][1, -1:])

    def padded(self) -> Tensor:
        """Both prompts as rows of one length, the last token of the shorter repeated."""
        long, short = self.prompts
        return torch.stack([long, torch.cat([short, short[-1:].expand(LONG - SHORT)])])


@contextmanager
def _stock_attention(backbone: Any) -> Iterator[None]:
    """The model with transformers' own attention in place of this project's."""
    model = backbone.model
    chosen = model.config._attn_implementation
    if chosen == "mhc":
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)
