"""Lightning callbacks: acceptance while training, heads' checkpoints, the decode benchmark, what training cost, and the
small model's directory."""

from callbacks.acceptance import Acceptance
from callbacks.decode_benchmark import DecodeBenchmark
from callbacks.drafter_checkpoint import DrafterCheckpoint
from callbacks.save_model import SaveModel
from callbacks.training_cost import TrainingCost

__all__ = ["Acceptance", "DecodeBenchmark", "DrafterCheckpoint", "SaveModel", "TrainingCost"]
