"""Lightning callbacks: acceptance while training, heads' checkpoints, the decode benchmark, what training cost, the guard
against divergence, the run's report, the small model's answers and its directory."""

from callbacks.acceptance import Acceptance
from callbacks.decode_benchmark import DecodeBenchmark
from callbacks.divergence import Divergence
from callbacks.drafter_checkpoint import DrafterCheckpoint
from callbacks.run_report import RunReport
from callbacks.samples import Samples
from callbacks.save_model import SaveModel
from callbacks.training_cost import TrainingCost

__all__ = [
    "Acceptance",
    "DecodeBenchmark",
    "Divergence",
    "DrafterCheckpoint",
    "RunReport",
    "Samples",
    "SaveModel",
    "TrainingCost",
]
