"""A vLLM plugin, up to 0.32: MHC cascades run in vLLM, as `run.py export` writes them.

    B requests   T tokens   K heads   D width   V vocabulary

`CascadeModel` (vllm-cascade) runs any cascade of residual cells in Medusa's place. vLLM calls it once a round with the hidden
state of every request's last accepted position, and proposes the argmax of each logits it gets. What a head needs besides,
the token before its own, is what the heads before it say, so the chain is closed in here. The token that the backbone itself
has decided on is not handed over: a first head that wants it (condition_first) gets the argmax of the backbone's lm_head on
the hidden state. That is the very token where decoding is greedy; where tokens are drawn, or logits penalised, it may be
another, and then guesses are worse while the text stays as right as ever.

`TiedCascadeModel` (vllm-tied-cascade) runs a cascade whose heads share one cell in EAGLE's place, which calls it step by step
with the token that was really chosen and what the step before gave. It shares the backbone's embedding and lm_head.

vLLM finds `register` by the entry point vllm.general_plugins; this file needs torch and vLLM, and nothing else of mhc.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

CASCADE, TIED = "MhcCascadeModel", "EagleMhcTiedCascadeModel"  # as config.json names them


def register() -> None:
    """Tell vLLM of the models of this file; harmless to repeat, as vLLM does in each of its processes."""
    from vllm import ModelRegistry

    for name, model in ((CASCADE, CascadeModel), (TIED, TiedCascadeModel)):
        if name not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, f"{__name__}:{model.__name__}")


class Embeddings(nn.Module):
    """A place for the backbone's embeddings, which vLLM puts there if their widths agree."""

    embed_tokens: nn.Module

    def __init__(self, width: int):
        super().__init__()
        self.embed_tokens = nn.Module()
        self.embed_tokens.weight = torch.empty(0, width)


class Block(nn.Module):
    """z = g + SiLU(W g + b)"""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, g: Tensor) -> Tensor:
        return g + silu(self.linear(g))


class Cell(nn.Module):
    """One head: project[g; token] where it sees a token, and `blocks` blocks z = h + SiLU(W h + b)."""

    def __init__(self, width: int, blocks: int, sees_token: bool):
        super().__init__()
        self.project = nn.Linear(2 * width, width) if sees_token else None
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, g: Tensor, embedded: Tensor | None) -> Tensor:
        """(B,D) the head's before, (B,D) the embedding of the token that it led to -> (B,D)"""
        if self.project is not None and embedded is not None:
            unit = rms_norm(embedded.float(), embedded.shape[-1:]).to(g.dtype)
            g = self.project(torch.cat([g, unit], dim=-1))
        for block in self.blocks:
            g = block(g)
        return g


class CascadeModel(nn.Module):
    """All heads of a cascade, one after the other. What config.json says of them under `cascade`: heads, blocks,
    condition_first, tied, own_lm_head, own_embedding (the backbone's differs from its lm_head), bias (of its lm_head)."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__()
        settings = vllm_config.speculative_config
        config = settings.draft_model_config.hf_config
        about, width, size = config.cascade, config.hidden_size, (config.vocab_size, config.hidden_size)
        self.heads, trained = proposed(settings, about), about["heads"]
        self.first, self.tied, self.own = about["condition_first"], about["tied"], about["own_lm_head"]
        self.cells = nn.ModuleList(
            Cell(width, about["blocks"], self.first or head > 0) for head in range(1 if self.tied else trained)
        )
        self.lm_head = nn.Parameter(torch.empty(size))  # the backbone's, whole on every rank
        self.lm_head_bias = nn.Parameter(torch.empty(size[0])) if about["bias"] else None
        self.embedding = nn.Parameter(torch.empty(size)) if about["own_embedding"] else None
        self.lm_heads = nn.ParameterList(torch.empty(size) for _ in range(trained if self.own else 0))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states (B,D), which `compute_logits` begins from."""
        return hidden_states

    def compute_logits(self, hidden_states: Tensor) -> list[Tensor]:
        """(B,D) -> K logits (B,V)"""
        table = self.lm_head if self.embedding is None else self.embedding
        said = self._backbone_logits(hidden_states) if self.first else None
        g, logits = hidden_states, []
        for head in range(self.heads):
            embedded = None if said is None else table[said.argmax(dim=-1)]
            g = self.cells[0 if self.tied else head](g, embedded)
            said = linear(g, self.lm_heads[head]) if self.own else self._backbone_logits(g)
            logits.append(said)
        return logits

    def _backbone_logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.lm_head, self.lm_head_bias)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return load_exactly(self, weights)


class TiedCascadeModel(nn.Module):
    """The one cell of a tied cascade, driven by vLLM's EAGLE proposer."""

    has_own_embed_tokens = has_own_lm_head = False  # vLLM then shares the backbone's

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__()
        from vllm.model_executor.layers.attention import Attention
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        config = vllm_config.speculative_config.draft_model_config.hf_config
        proposed(vllm_config.speculative_config, config.cascade)
        self.cell = Cell(config.hidden_size, config.cascade["blocks"], sees_token=True)
        self.model = Embeddings(config.hidden_size)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        # EAGLE's bookkeeping depends on a layer of attention in the backbone's cache. This one is never called.
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        layer = model.get_num_layers(parallel)
        self.unused = Attention(
            model.get_num_attention_heads(parallel),
            model.get_head_size(),
            scale=1.0,
            num_kv_heads=model.get_num_kv_heads(parallel),
            cache_config=vllm_config.cache_config,
            prefix=f"model.layers.{layer}.self_attn.attn",
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(T,) -> (T,D)"""
        return self.model.embed_tokens(input_ids)

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The token after each position (T,), what the step before gave there (T,D; in the first step the backbone's hidden
        state) -> (T,D) what is unembedded and (T,D) what the step to come takes, which are the same."""
        g = self.cell(hidden_states, self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds)
        return g, g

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """(B,D) -> (B,V)"""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return load_exactly(self, weights)


def proposed(settings, about: dict) -> int:
    """How many guesses vLLM asks for; ValueError where they are more than the heads that were trained."""
    if settings.num_speculative_tokens > about["heads"]:
        raise ValueError(
            f"num_speculative_tokens is {settings.num_speculative_tokens}, the cascade has {about['heads']} heads: ask for "
            "no more"
        )
    return settings.num_speculative_tokens


def load_exactly(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Fill the model's parameters; their names. Raises ValueError for a weight that is missing, unknown or of another shape."""
    parameters, given = dict(model.named_parameters()), dict(weights)
    wrong = sorted(parameters.keys() ^ given.keys())
    wrong += [name for name in parameters.keys() & given.keys() if parameters[name].shape != given[name].shape]
    if wrong:
        raise ValueError(f"these are not the weights of this cascade ({', '.join(wrong)}): export it again")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(given[name])
    return set(parameters)
