"""Chunked losses through an unembedding: logits of all positions never exist at once.

    A anchors (supervised positions)   D width   V vocabulary (or the draft's part of it)   C anchors in a chunk

Three objectives, each a mean over the anchors. q is the head's distribution, p the backbone's at the same place:

    ce   -log q(label)                         the text itself; needs no p
    kl   sum_v p_v (log p_v - log q_v)         the backbone's distribution, at a temperature if wanted
    lk   -log sum_v min(p_v, q_v)              acceptance itself: the chance that a guess drawn from q is kept
                                               (LK losses, arXiv 2602.23881)

Gradients towards hidden states and trained matrices are made in the forward, chunk by chunk, so the backward has
nothing to recompute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK = 512  # C: small enough for a CPU's cache (5x the speed of one piece), 64 MB at V = 32k
OBJECTIVES = ("ce", "kl", "lk")
Finish = Callable[[Tensor], Tensor]  # from products with an unembedding to logits


class HeadLoss(NamedTuple):
    """loss: mean over the anchors (scalar, differentiable); rank (A,): how many tokens are likelier than the label
    (`rank < 5` is top-5), V where the label cannot be proposed; overlap (A,): sum_v min(p_v, q_v), or None without p.
    """

    loss: Tensor
    rank: Tensor
    overlap: Tensor | None = None


@dataclass
class Teacher:
    """The backbone's own distribution: softmax(finish(hidden (A,D) @ weight.T (V,D)) / temperature), finish as in Backbone."""

    hidden: Tensor
    weight: Tensor
    temperature: float = 1.0
    finish: Finish | None = None


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, labels, objective, anchor_weight, teacher, vocabulary, finish, dtype, *matrices):
        columns = [matrix.shape[1] for matrix in matrices]
        casts = [matrix.detach().to(dtype) for matrix in matrices]
        gradients = [torch.zeros_like(matrix) if matrix.requires_grad else None for matrix in matrices]
        d_hidden = torch.empty_like(hidden)
        precise = {"dtype": torch.promote_types(dtype, torch.float), "device": hidden.device}
        loss = torch.zeros((), **precise)
        rank = torch.empty_like(labels)
        overlap = torch.empty(len(labels) if teacher else 0, **precise)
        index = _draft_index(vocabulary, labels)
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            inputs = hidden[part].to(dtype).split(columns, dim=1)
            product = logits = _product(inputs, casts)  # (C,V)
            if finish is not None:
                with torch.enable_grad():
                    finished = finish(product.requires_grad_())
                logits = finished.detach().clone()
            label = index[part, None]
            known = label >= 0
            at_label = logits.gather(1, label.clamp(min=0))
            above = logits.shape[1] - (logits <= at_label).sum(dim=1, keepdim=True)  # heads of NaN are right nowhere
            rank[part] = torch.where(known, above, logits.shape[1])[:, 0]
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            p, best = _teacher_distribution(teacher, part, vocabulary, dtype) if teacher else (None, None)
            if objective == "ce":
                each = log_sum - at_label
                q = logits.sub_(log_sum).exp_()
                if p is not None:
                    overlap[part] = torch.minimum(p, q).sum(dim=1)
                d_logits = q.scatter_add_(1, label.clamp(min=0), torch.full_like(at_label, -1.0))
            else:
                assert p is not None and best is not None
                log_q = logits.sub_(log_sum)
                q = log_q.exp()
                shared = torch.minimum(p, q).sum(dim=1, keepdim=True)
                overlap[part] = shared[:, 0]
                if objective == "kl":
                    each = (torch.special.xlogy(p, p) - p * log_q).sum(dim=1, keepdim=True)
                    d_logits = q.sub_(p)
                else:
                    below = q * (q < p)  # where q rises, acceptance does
                    shared = shared.clamp(min=torch.finfo(torch.float).tiny)  # 0 where the two do not meet at all
                    each = -shared.log()
                    d_logits = (q * below.sum(dim=1, keepdim=True) - below) / shared
                known = (best if vocabulary is None else _draft_index(vocabulary, best))[:, None] >= 0
            if anchor_weight is not None:
                known = known * anchor_weight[part, None]
            if anchor_weight is not None or vocabulary is not None:
                each, d_logits = each * known, d_logits.mul_(known)
            loss += each.sum()
            if finish is not None:
                (d_logits,) = torch.autograd.grad(finished, product, d_logits)
            d_logits = d_logits.to(dtype)
            column = 0
            for x, matrix, gradient in zip(inputs, casts, gradients):
                d_hidden[part, column : column + matrix.shape[1]] = (d_logits @ matrix).to(hidden.dtype)
                column += matrix.shape[1]
                if gradient is not None:
                    gradient += (d_logits.T @ x).to(gradient.dtype)
        ctx.save_for_backward(d_hidden, *gradients)
        ctx.count = max(1, len(labels))
        ctx.mark_non_differentiable(rank, overlap)
        return loss / ctx.count, rank, overlap

    @staticmethod
    def backward(ctx, d_loss: Tensor, *_):
        d_hidden, *gradients = ctx.saved_tensors
        scale = d_loss / ctx.count
        scaled = [None if gradient is None else gradient * scale for gradient in gradients]
        return (d_hidden * scale, *[None] * 7, *scaled)


def _product(inputs, matrices) -> Tensor:
    """The sum of x @ matrix.T, in fp32 at least."""
    logits = inputs[0] @ matrices[0].T
    for x, matrix in zip(inputs[1:], matrices[1:]):
        logits = logits + x @ matrix.T
    return logits.to(torch.promote_types(logits.dtype, torch.float))


def _teacher_distribution(teacher: Teacher, part: slice, vocabulary, dtype) -> tuple[Tensor, Tensor]:
    """p (C,V), renormalised over the draft's vocabulary, and the likeliest of all tokens (C,)."""
    logits = _product([teacher.hidden[part].to(dtype)], [teacher.weight.detach().to(dtype)])
    if teacher.finish is not None:
        logits = teacher.finish(logits)
    best = logits.argmax(dim=1)
    if vocabulary is not None:
        logits = logits.index_select(1, vocabulary)
    return (logits / teacher.temperature).softmax(dim=1), best


def _draft_index(vocabulary: Tensor | None, tokens: Tensor) -> Tensor:
    """Where `tokens` stand in a draft vocabulary (V,) of ascending ids, -1 for those outside."""
    if vocabulary is None:
        return tokens
    index = torch.searchsorted(vocabulary, tokens).clamp(max=len(vocabulary) - 1)
    return torch.where(vocabulary[index] == tokens, index, -1)


def chunked_loss(
    hidden: Tensor,
    matrices: tuple[Tensor, ...],
    labels: Tensor,
    objective: str = "ce",
    weight: Tensor | None = None,
    teacher: Teacher | None = None,
    vocabulary: Tensor | None = None,
    finish: Finish | None = None,
) -> HeadLoss:
    """The loss of one head at A anchors, whose logits are finish(sum_i hidden[:, columns i] @ matrices[i].T).

    hidden (A, sum of D_i); matrices (V,D_i), each trained or frozen; labels (A,) token ids. weight (A,): what an anchor
    counts (all count in the mean's denominator). teacher: needed by kl and lk. vocabulary (V,): the ascending token
    ids behind the columns of the logits, where a draft has not all of them; then anchors whose token (ce) or whose
    backbone's favourite (kl, lk) is not among them count 0. finish: as in Backbone, None for the product itself. Products run in autocast's precision where that is on, sums
    in fp32. No anchors give a loss of 0.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss, rank, overlap = _ChunkedLoss.apply(
        hidden, labels, objective, weight, teacher, vocabulary, finish, dtype, *matrices
    )
    return HeadLoss(loss, rank, overlap if teacher else None)


def log_probabilities(
    hidden: Tensor, matrices: tuple[Tensor, ...], labels: Tensor, finish: Finish | None = None
) -> Tensor:
    """log q(label) of each of A anchors (A,) in fp32, for losses that are no mean over anchors; arguments as in `chunked_loss`.
    Differentiable; a chunk's logits are computed again in the backward."""

    def at_labels(part: Tensor, label: Tensor, *matrices: Tensor) -> Tensor:
        logits = _product(part.split([matrix.shape[1] for matrix in matrices], dim=1), matrices)
        return -cross_entropy(logits if finish is None else finish(logits), label, reduction="none")

    chunks = zip(hidden.split(CHUNK), labels.split(CHUNK))
    return torch.cat([checkpoint(at_labels, part, label, *matrices, use_reentrant=False) for part, label in chunks])
