"""mhc: multi-head-causal drafting for frozen language models, with exactly the text they gave before.

    from mhc import Engine, Sampling

    engine = Engine.from_checkpoint("runs/quickstart/cascade")
    print(engine.generate("Hello!", sampling=Sampling(temperature=0.8, seed=7)).text)

What stands in `__all__` is the public interface (docs/api.md); it is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mhc.version import __version__ as __version__

if TYPE_CHECKING:
    from mhc.backbone.model import Backbone as Backbone
    from mhc.decoding.request import DecodeRequest as DecodeRequest
    from mhc.decoding.request import Generation as Generation
    from mhc.decoding.request import StepOutput as StepOutput
    from mhc.engine import Engine as Engine
    from mhc.errors import UserError as UserError
    from mhc.sampling import Sampling as Sampling
    from mhc.trees.shapes import DynamicTree as DynamicTree
    from mhc.trees.shapes import FixedTree as FixedTree

_HOMES = {
    "Backbone": "mhc.backbone.model",
    "DecodeRequest": "mhc.decoding.request",
    "DynamicTree": "mhc.trees.shapes",
    "Engine": "mhc.engine",
    "FixedTree": "mhc.trees.shapes",
    "Generation": "mhc.decoding.request",
    "Sampling": "mhc.sampling",
    "StepOutput": "mhc.decoding.request",
    "UserError": "mhc.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import mhc` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mhc' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
