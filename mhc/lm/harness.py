"""EleutherAI's lm-evaluation-harness on a model, where it is installed."""

import importlib.util
import json
from importlib.metadata import version
from typing import Any

from mhc.backbone.loading import locate
from mhc.errors import UserError

BATCH_SIZE = 8


def require_harness() -> None:
    """Raise UserError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('--harness needs lm-evaluation-harness, which is not installed: pip install "lm_eval[hf]"')


def run_harness(
    model: str, tasks: list[str], shots: int | None, limit: int | None, device: str, dtype: str
) -> tuple[dict[str, Any], str]:
    """The results of its `simple_evaluate`, and its own table. tasks: its names, or YAML files of tasks; shots: None leaves
    it to each task. Raises UserError with its error, such as an unknown task or data that cannot be downloaded."""
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    source = locate(model)
    try:
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": source.path, **source.arguments, "dtype": dtype},
            tasks=tasks,
            num_fewshot=shots,
            limit=limit,
            batch_size=BATCH_SIZE,
            device=device,
            log_samples=False,
        )
    except Exception as error:  # it raises anything, and so do the data sets behind it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"lm-evaluation-harness failed on {', '.join(tasks)} ({reason})") from error
    tables = [make_table(results)] + ([make_table(results, "groups")] if results.get("groups") else [])
    parts = {
        name: results[name] for name in ("results", "groups", "versions", "n-shot", "n-samples") if name in results
    }
    return json.loads(json.dumps(parts, default=float)) | {"lm_eval": version("lm_eval")}, "\n".join(tables)
