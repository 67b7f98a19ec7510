"""The balancing loss is the paper's, counts no padding, and reaches the router; the figures are what they say."""

from importlib import import_module

import pytest
import torch

from mhc.backbone.model import packed_options
from mhc.backbone.packing import Packing
from mhc.lm.experts import FIGURES, balance, routed_config, usage
from tests.helpers.backbones import tiny_backbone
from tests.helpers.language_models import shrunk

MODELS = {
    "ernie4_5_moe": lambda: shrunk("moe-145m"),
    "qwen3_moe": lambda: shrunk("moe-198m"),
    "mixtral": lambda: tiny_backbone("mixtral").model.requires_grad_(),
    "gpt_oss": lambda: tiny_backbone("gpt_oss").model.requires_grad_(),
}


def by_definition(logits: torch.Tensor, top_k: int, mask: torch.Tensor) -> tuple[float, list[float]]:
    """E * sum_i f_i * P_i of one layer, token by token (arXiv 2101.03961, eq. 4-6, with K choices in place of one)."""
    experts = logits.shape[1]
    tokens, share, mean = 0, [0.0] * experts, [0.0] * experts
    for row, real in zip(logits.double(), mask.flatten().tolist()):
        if not real:
            continue
        tokens += 1
        probability = (row.exp() / row.exp().sum()).tolist()
        for expert in sorted(range(experts), key=lambda i: -probability[i])[:top_k]:
            share[expert] += 1
        mean = [old + new for old, new in zip(mean, probability)]
    share = [count / tokens for count in share]
    return experts * sum(f * p / tokens for f, p in zip(share, mean)), share


@pytest.fixture
def routers():
    """Logits of 3 layers with 5 experts at 2 rows of 7 tokens, and where these are no padding."""
    generator = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(14, 5, generator=generator) * 2 for _ in range(3))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = mask[1, 6:] = False
    return logits, mask


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_loss_is_the_papers(routers, top_k):
    logits, mask = routers
    for real in (mask, None):
        loss, load = balance(logits, 5, top_k, real)
        found = [by_definition(layer, top_k, torch.ones(2, 7) if real is None else real) for layer in logits]
        assert loss.item() == pytest.approx(sum(each for each, _ in found) / 3, rel=1e-5)
        torch.testing.assert_close(load, torch.tensor([share for _, share in found]))


@pytest.mark.parametrize("model_type", ["ernie4_5_moe", "qwen3_moe", "mixtral"])
def test_it_is_transformers_own_of_each_layer(routers, model_type):
    logits, mask = routers
    module = import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    for real in (mask, None):
        theirs = [module.load_balancing_loss_func((layer,), 5, 2, real) for layer in logits]
        torch.testing.assert_close(balance(logits, 5, 2, real)[0], sum(theirs) / 3)


def test_layers_do_not_make_up_for_each_other():
    """Each of two layers uses one expert of its own: as uneven as can be, though together they look even."""
    one, other = torch.tensor([[9.0, -9.0]] * 6), torch.tensor([[-9.0, 9.0]] * 6)
    loss, load = balance((one, other), 2, 1)
    assert loss.item() == pytest.approx(2, abs=1e-4) and load.tolist() == [[1, 0], [0, 1]]
    assert balance((torch.zeros(6, 2),), 2, 1)[0].item() == pytest.approx(1)


def test_padding_counts_nothing(routers):
    logits, mask = routers
    loss, load = balance(logits, 5, 2, mask)
    wild = tuple(layer.masked_fill(~mask.reshape(-1, 1), 50.0) for layer in logits)
    again, same = balance(wild, 5, 2, mask)
    assert torch.equal(loss, again) and torch.equal(load, same)
    nothing, none = balance(logits, 5, 2, torch.zeros_like(mask))
    assert nothing.item() == 0 and not none.any()


def test_figures():
    even, one, half = torch.full((4,), 0.5), torch.tensor([2.0, 0, 0, 0]), torch.tensor([1.0, 1.0, 0, 0])
    assert usage(torch.stack([even, even])) == dict(zip(FIGURES, (1, 0, pytest.approx(1))))
    assert usage(torch.stack([one, one])) == dict(zip(FIGURES, (4, 0.75, 0)))
    assert usage(torch.stack([even, half])) == dict(zip(FIGURES, (2, 0.25, pytest.approx(0.75))))
    assert all(value.isfinite() for value in usage(torch.zeros(2, 4)).values())


def test_only_what_routes_is_balanced(backbones):
    assert routed_config(backbones("llama").model) is None
    found = {name: routed_config(make()) for name, make in MODELS.items()}
    assert {(routing.experts, routing.top_k) for name, routing in found.items() if name != "qwen3_moe"} == {(4, 2)}
    assert (found["qwen3_moe"].top_k, found["qwen3_moe"].coefficient) == (1, 0.004)
    assert found["ernie4_5_moe"].coefficient == 0.01


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_stock_models_are_balanced_through_their_routers(name, autocast):
    """The load is what the experts were really given, and descending the loss makes it more even."""
    model = MODELS[name]().train()
    routing, ids = routed_config(model), torch.randint(0, 61, (4, 30), generator=torch.Generator().manual_seed(1))
    given = []  # the experts' second argument: whom each token goes to
    for part in model.modules():
        if type(part).__name__.endswith("Experts"):
            part.register_forward_hook(lambda part, args, out: given.append(args[1].flatten().bincount(minlength=4)))
    routers = [
        p for n, p in model.named_parameters() if p.requires_grad and n.endswith(("gate.weight", "router.weight"))
    ]
    optimizer = torch.optim.Adam(routers, lr=0.02)
    losses = []
    for _ in range(15):
        given.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model.base_model(input_ids=ids, use_cache=False, output_router_logits=True)
            loss, load = balance(out.router_logits, routing.experts, routing.top_k)
        assert load.shape == (2, 4) and loss.dtype == load.dtype == torch.float32
        torch.testing.assert_close(load, torch.stack(given) / ids.numel())
        optimizer.zero_grad()
        loss.backward()
        assert all(router.grad.abs().sum() > 0 for router in routers)
        optimizer.step()
        losses.append(loss.item())
    assert len(routers) == 2 and losses[-1] < 0.5 * (losses[0] + routing.top_k)


@pytest.mark.parametrize("name", ["ernie4_5_moe", "qwen3_moe"])
def test_packed_rows_are_balanced_as_rows_alone(name):
    model = MODELS[name]().eval()
    routing = routed_config(model)
    first, second = torch.arange(1, 8), torch.arange(20, 31)
    packed = torch.cat([first, second, torch.zeros(3, dtype=torch.long)])[None]
    segments = torch.tensor([[0] * 7 + [1] * 11 + [-1] * 3])
    options = packed_options(model, Packing(segments))
    out = model.base_model(input_ids=packed, use_cache=False, output_router_logits=True, **options)
    loss, load = balance(out.router_logits, routing.experts, routing.top_k, segments >= 0)
    alone = [model.base_model(input_ids=ids[None], output_router_logits=True).router_logits for ids in (first, second)]
    expected, same = balance(tuple(map(torch.cat, zip(*alone))), routing.experts, routing.top_k)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(load, same)
