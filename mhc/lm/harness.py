"""EleutherAI's lm-evaluation-harness on a model, for whoever has it installed."""

import importlib.util
import json
from importlib.metadata import version
from typing import Any

from mhc.backbone.model import resolve
from mhc.errors import UserError

TOGETHER = 8  # requests read at once


def require_harness() -> None:
    """Raise UserError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('--harness needs lm-evaluation-harness, not installed here: pip install "lm_eval[hf]"')


def run_harness(
    model: str, tasks: list[str], shots: int | None, limit: int | None, device: str, dtype: str
) -> tuple[dict[str, Any], str]:
    """What its `simple_evaluate` finds, and its own table. tasks: its names, or YAML files of tasks; shots: None leaves it to
    each task. Raises UserError with its complaint, be that an unknown task or one whose data cannot be fetched."""
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    try:
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": resolve(model), "dtype": dtype},
            tasks=tasks,
            num_fewshot=shots,
            limit=limit,
            batch_size=TOGETHER,
            device=device,
            log_samples=False,
        )
    except Exception as error:  # it raises anything, and so do the data sets behind it
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"lm-evaluation-harness cannot do {', '.join(tasks)} ({told})") from error
    tables = [make_table(found)] + ([make_table(found, "groups")] if found.get("groups") else [])
    kept = {name: found[name] for name in ("results", "groups", "versions", "n-shot", "n-samples") if name in found}
    return json.loads(json.dumps(kept, default=float)) | {"lm_eval": version("lm_eval")}, "\n".join(tables)
