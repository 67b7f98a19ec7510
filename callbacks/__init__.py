"""Lightning callbacks: heads' checkpoints, the decode benchmark, and the small model's directory."""

from callbacks.decode_benchmark import DecodeBenchmark
from callbacks.drafter_checkpoint import DrafterCheckpoint
from callbacks.save_model import SaveModel

__all__ = ["DecodeBenchmark", "DrafterCheckpoint", "SaveModel"]
