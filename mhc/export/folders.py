"""What all formats share: a folder of config.json and safetensors, written whole and read strictly.

    A positions compared   K heads   D width   V vocabulary

Engines pass over many a wrong file in silence: a tensor under another name is not loaded, a bias without its flag is
dropped, and the heads' guesses are worth nothing. So each format has a reader that follows its engine's loading rules, is
written apart from the writer, and takes whatever is unused, missing, renamed or of another shape for an error.
"""

import json
import pickle
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mhc.backbone.loading import resolve
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Diffusion, Drafter, Eagle3, Medusa
from mhc.errors import UserError
from mhc.util.files import write_atomically, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# vLLM takes a folder for these by its path, whatever the method says.
MISTAKEN = ("eagle-", "eagle3", "dflash", "dspark")
TOLERANCE, ROUNDED = 1e-4, 0.05  # of fp32 logits and of those in half precision, as a share of the largest
SERVE = "export `hf` and serve it with `run.py serve`"
NEAREST = {
    Medusa: "export vllm-medusa or tgi-medusa",
    Eagle3: "export eagle3-vllm, eagle3-sglang or speculators",
    Diffusion: SERVE,
    Cascade: f"export vllm-cascade, or {SERVE}",
}

Engine = Callable[[Tensor, Tensor], Tensor]
"""What an engine makes of a folder: hidden states (A,D) and the known next tokens with those after (A,K) -> (A,K,V)."""


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], weights: str = WEIGHTS) -> None:
    """Write config.json and the tensors, each contiguous and its own (safetensors refuses shared memory)."""
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(folder / weights, lambda at: at.write_bytes(save(whole, metadata={"format": "pt"})))
    write_json(folder / CONFIG, config)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of `folder`; UserError if there is none or it is damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no {CONFIG} in '{folder}': give a folder of exported or published heads") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{folder / CONFIG}' is damaged ({error}): fetch or export it again") from error
    if not isinstance(config, dict):
        raise UserError(f"'{folder / CONFIG}' is damaged (no object): fetch or export it again")
    return config


def read_counts(config: dict[str, Any], first: str, second: str, where: str) -> tuple[int, int]:
    """Two counts of a config.json; UserError for anything but whole numbers from 1 on."""
    one, other = config.get(first), config.get(second)
    if not (type(one) is int and type(other) is int and one >= 1 and other >= 1):
        raise UserError(f"{where}: config.json says {first} {one!r} and {second} {other!r}: it takes counts")
    return one, other


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read '{path}' ({error}): fetch or export it again") from error


def require_shapes(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Raise UserError unless the tensors are just these."""
    missing, unread = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or unread:
        told = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unread)}, unread"] * bool(unread)
        raise UserError(f"{where} {' and '.join(told)}: an engine would run other heads than these")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{where}: {name} is {tuple(tensors[name].shape)}, the config wants {shape}")


def require(config: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Raise UserError unless config says all of this."""
    for name, value in wanted.items():
        if config.get(name) != value:
            raise UserError(f"{where}: {name} is {config.get(name)!r} in {CONFIG}, the engine needs {value!r} here")


def require_plain_unembedding(drafter: Drafter, engine: str) -> None:
    """Raise UserError where logits are more than a matrix times the hidden state."""
    backbone = drafter.backbone
    if backbone.around_lm_head.finishes:
        raise UserError(
            "the backbone scales or caps what its lm_head gives and so do its heads, which "
            f"{engine}'s heads do not: {SERVE}"
        )


def target(backbone: Backbone) -> str:
    """The backbone as an engine finds it: a hub name or an absolute folder."""
    where = resolve(backbone.name) if backbone.name else "BACKBONE"
    return str(Path(where).resolve()) if Path(where).exists() else where


def stored(tensor: Tensor, backbone: Backbone) -> Tensor:
    """A weight in the precision that the backbone was loaded in: the engine casts to its model's anyway."""
    return tensor.detach().to(backbone.dtype)


def require_path(folder: Path) -> None:
    """Raise UserError for a path that vLLM would take for other heads than those that stand in it."""
    mistaken = [word for word in MISTAKEN if word in str(folder).lower()]
    if mistaken:
        raise UserError(
            f"vLLM takes a path with '{mistaken[0]}' in it for other heads than these: choose another --out"
        )


def vllm_command(drafter: Drafter, folder: Path, method: str) -> str:
    """How vLLM serves the backbone with the heads in `folder`."""
    settings = {"method": method, "model": str(folder), "num_speculative_tokens": drafter.draft_length}
    command = ["vllm", "serve", target(drafter.backbone), "--speculative-config"]
    return shlex.join([*command, json.dumps(settings, ensure_ascii=False)])


def tgi_command(folder: Path) -> str:
    """How text-generation-inference serves the heads in `folder` with the backbone that their config names."""
    return shlex.join(["text-generation-launcher", "--model-id", str(folder)])


@torch.no_grad()
def said(drafter: Drafter, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What our heads say, as training asks them, of A = `length` positions of random tokens: the tokens (1,T), the backbone's
    hidden states there (A,D), and the heads' logits (A,K,V) in fp32."""
    backbone = drafter.backbone
    dice = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, backbone.vocabulary_size, (1, length + drafter.draft_length + 1), generator=dice)
    ids = ids.to(backbone.device)
    positions = torch.arange(length, device=ids.device)
    features = backbone.features(ids, drafter.taps)
    guesses = drafter(features, ids, (torch.zeros_like(positions), positions))
    logits = torch.stack([drafter.unembed(head, guess.hidden) for head, guess in enumerate(guesses)], dim=1)
    return ids, features.hidden[0, positions].float(), logits.float()


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference between logits, as a share of our largest; infinite where one side can propose a token (it is not
    -inf) and the other cannot."""
    differences = torch.where(ours == theirs, 0.0, (ours - theirs).abs())
    return float(differences.max() / ours[ours.isfinite()].abs().max())


def difference(drafter: Drafter, engine: Engine, length: int = 32, seed: int = 0) -> float:
    """How far `apart` our heads and the engine are, over the backbone's hidden states of random tokens."""
    ids, hidden, ours = said(drafter, length, seed)
    following = ids[0, 1:].unfold(0, drafter.draft_length, 1)[:length]  # (A,K): the known next token and those after it
    return apart(ours, engine(hidden, following))


def first_of(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there; UserError where none is."""
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"no heads in '{folder}': none of {', '.join(names)} is there")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or a torch file of which nothing but tensors is taken."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickles of another protocol
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is damaged or holds more than tensors, and nothing in it is executed: ask its author for "
            "safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or repr(error)
        raise UserError(f"cannot read '{path}' ({reason}): fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(f"'{path}' holds no dictionary of tensors: give the heads' state dict")
    return found
