"""What a resumed run is told differently from the run that wrote its checkpoint.

A checkpoint brings back the optimizer with its learning rate and its schedule, the counters of steps and the order of the
data. A setting that these overrule would be taken, logged and not used; so it is refused. Every other setting is used, and
said where it differs.
"""

import json
from typing import Any

from mhc.errors import UserError

# Settings that the checkpoint's own state decides; a name that ends in a dot is a section.
DECIDED = (
    "seed_everything",
    "optimizer.",
    "lr_scheduler.",
    "trainer.accumulate_grad_batches",
    "model.init_args.learning_rate",
    "model.init_args.weight_decay",
    "model.init_args.warmup",
)
# Settings that say how this very call runs, not what is trained.
CALL = ("config", "ckpt_path", "weights_only", "dry_run", "auto_batch_size", "trainer.default_root_dir", "checkpoint.")


def named(name: str, settings: tuple[str, ...]) -> bool:
    """Whether a setting is among these, or in one of their sections."""
    return any(name == one or (one.endswith(".") and f"{name}.".startswith(one)) for one in settings)


def flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Settings, as a parser writes them down, by dotted name."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{above}{key}"
        if not named(name, CALL):
            values |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return values


def compare(before: dict[str, Any], now: dict[str, Any], states: dict[str, Any]) -> str | None:
    """A line about settings that differ from the checkpoint's, if any do. states: what each callback keeps in a checkpoint,
    by its class's name. Raises UserError for those that the checkpoint would overrule."""
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    refused = {name: (before.get(name), now.get(name)) for name in changed if named(name, DECIDED)}
    callbacks = "trainer.callbacks"
    if callbacks in changed:
        old, new = (_by_class(values.get(callbacks)) for values in (before, now))
        for kind in old.keys() & new.keys():
            for name in (states.get(kind, {}).keys() | {"monitor"}) & (old[kind].keys() | new[kind].keys()):
                if old[kind].get(name) != new[kind].get(name):
                    refused[f"{kind}.{name}"] = old[kind].get(name), new[kind].get(name)
    if refused:
        listed = ", ".join(f"{name} was {was} and is {value}" for name, (was, value) in sorted(refused.items()))
        raise UserError(
            f"the checkpoint was made with other settings, which it brings back: {listed}: resume with the same, or start "
            "over in another --trainer.default_root_dir"
        )
    listed = "; ".join(f"{name} {_short(now.get(name))} (was {_short(before.get(name))})" for name in sorted(changed))
    return f"resuming with other settings than the checkpoint's: {listed}" if listed else None


def _by_class(callbacks: Any) -> dict[str, dict[str, Any]]:
    listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    return {callback["class_path"].rpartition(".")[2]: callback.get("init_args") or {} for callback in listed}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
