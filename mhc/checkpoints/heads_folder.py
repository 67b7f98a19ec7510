"""The folder that heads live in: `drafter.json` and `drafter.safetensors`, never the backbone.

drafter.json holds the drafter's class and arguments, the backbone's name and fingerprint, the tree
to decode with and a sha256 of the weights. It is written last, so that a folder with a drafter.json
is whole. `run.py tune` adds tree.json, the tree that is fastest on its machine, which then takes precedence.
Loading executes nothing from a file.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import mhc.drafters
from mhc.backbone.loading import is_here
from mhc.backbone.model import Backbone
from mhc.backbone.weight_layout import lay_out_for_few_rows
from mhc.distributed.sharding import whole_state
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.trees.shapes import TreeShape, parse_tree
from mhc.util.files import write_atomically, write_json
from mhc.version import __version__

DESCRIPTION, WEIGHTS, TUNED = "drafter.json", "drafter.safetensors", "tree.json"


# Arguments of heads that were saved before their constructors had one name for each meaning.
RENAMED = {
    "Diffusion": {"heads": "draft_length", "layers": "num_layers"},
    "Eagle3": {"heads": "draft_length", "layers": "taps"},
}


def saved_arguments(description: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments as a description of heads keeps them, under their present names."""
    names = RENAMED.get(description["drafter"], {})
    return {names.get(name, name): value for name, value in description["arguments"].items()}


def describe(drafter: Drafter) -> dict[str, Any]:
    """What is needed to build `drafter` again, and to tell whether a backbone is the right one."""
    backbone = drafter.backbone
    return {
        "mhc_version": __version__,
        "drafter": type(drafter).__name__,
        "arguments": drafter.arguments,
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
    }


def require_match(description: dict[str, Any] | None, drafter: Drafter, where: str) -> None:
    """Raise UserError unless heads described so can be loaded into `drafter` on its backbone."""
    if not description:
        raise UserError(f"{where} holds no draft heads: was it written by `run.py fit` with a DraftModule?")
    here = describe(drafter)
    if not drafter.backbone.is_model(description["fingerprint"], description.get("dtype")):
        raise UserError(
            f"{where} belongs to backbone '{description['backbone']}' ({description['fingerprint']}), not to "
            f"'{here['backbone']}' ({here['fingerprint']}): train heads for this backbone, or load that one"
        )
    before, now = (_built(one, drafter) for one in (description, here))
    if before != now:
        raise UserError(
            f"{where} holds {before}, the configuration asks for {now}: use the arguments it was trained with"
        )


def _built(description: dict[str, Any], drafter: Drafter) -> str:
    """The class and the arguments that decide tensor shapes; what an older version did not know has its default."""
    known = inspect.signature(type(drafter)).parameters
    arguments = {name: known[name].default for name in drafter.arguments} | saved_arguments(description)
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items() if key not in drafter.free_arguments)
    return f"{description['drafter']}({shown})"


def save_drafter(
    folder: Path,
    drafter: Drafter,
    tree: TreeShape,
    metrics: dict[str, float] | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write the heads to `folder`; `metrics` are kept beside them for the reader. A tree tuned for other heads goes.
    state: the heads' tensors, where they are split over processes and had to be gathered."""
    (folder / TUNED).unlink(missing_ok=True)
    weights = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in (drafter.state_dict() if state is None else state).items()
    }
    write_atomically(
        folder / WEIGHTS, lambda at: at.write_bytes(save(weights))
    )  # save_file: readable by the owner alone
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    extra = {"tree": tree.describe(), "sha256": digest, "metrics": metrics or {}}
    write_json(folder / DESCRIPTION, describe(drafter) | extra)


def tuned_tree(folder: Path) -> TreeShape | None:
    """The tree that `run.py tune` found for the heads in `folder`, if it was run."""
    try:
        return parse_tree(json.loads((folder / TUNED).read_text(encoding="utf-8"))["tree"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder / TUNED}' is damaged ({error!r}): delete it or run `run.py tune` again") from error


def load_drafter(path: str | Path, backbone: str | Backbone | None = None, **loading: Any) -> tuple[Drafter, TreeShape]:
    """The heads in folder `path`, on the backbone they name or on the one given, and their tree, tuned if it was.
    loading: how to load the backbone, as in `Backbone.load`.

    Raises UserError for a folder without heads, damaged files, or a backbone that does not match.
    """
    folder = Path(path)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        known = {key: description[key] for key in ("drafter", "arguments", "backbone", "fingerprint", "tree", "sha256")}
        family, arguments = getattr(mhc.drafters, known["drafter"]), saved_arguments(description)
        tree = parse_tree(known["tree"])
    except FileNotFoundError as error:
        raise UserError(
            f"no heads in '{folder}' ({DESCRIPTION} is missing): give the folder that `run.py fit` wrote to"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{folder / DESCRIPTION}' is damaged ({error!r}): train again or restore it") from error
    if not isinstance(backbone, Backbone):
        backbone = Backbone.load(backbone or _from_here(folder, known["backbone"]), **loading)
    try:
        drafter = family(backbone, **arguments)
    except TypeError as error:
        raise UserError(f"'{folder / DESCRIPTION}' is damaged ({error}): train again or restore it") from error
    require_match(description, drafter, f"'{folder}'")
    try:
        data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            raise UserError(f"'{folder / WEIGHTS}' is damaged (its sha256 is not the recorded one): train again")
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read '{folder / WEIGHTS}': {error}") from error
    drafter.load_state_dict(weights)
    return drafter.to(backbone.device).eval(), tuned_tree(folder) or tree


def _from_here(folder: Path, name: str) -> str:
    """The backbone that heads in `folder` name. A directory named relatively is looked for from here and, since heads may be
    loaded from elsewhere than where they were trained, from the folders above them."""
    there = (str(above / name) for above in folder.resolve().parents)
    return name if is_here(name) else next(filter(is_here, there), name)


def for_decoding(drafter: Drafter) -> Drafter:
    """A copy of the heads as decoding wants them: on their backbone's device, in its precision, laid out for few rows."""
    backbone = drafter.backbone
    family: Callable[..., Drafter] = type(drafter)
    copy = family(backbone, **drafter.arguments)
    copy.load_state_dict(whole_state(drafter))
    copy = copy.to(backbone.device, backbone.dtype).eval().requires_grad_(False)
    lay_out_for_few_rows(copy)
    return copy
