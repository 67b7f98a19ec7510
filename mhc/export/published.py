"""Published heads turned into ours: FasterDecoding's Medusa checkpoints, and EAGLE-3's."""

from pathlib import Path

from mhc.backbone.model import Backbone
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.export.eagle3_import import import_eagle3
from mhc.export.folders import CONFIG, read_config
from mhc.export.medusa_import import import_medusa


def read_published(folder: Path, backbone: Backbone) -> Drafter:
    """The heads in a published folder, on the backbone they were made for.

    Raises UserError for a folder of neither kind, for damaged files and for another backbone's heads."""
    config = read_config(folder)
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"'{folder / CONFIG}': architectures is {architectures!r}, not a list of names")
    if any("Eagle3" in name for name in architectures) or config.get("speculators_model_type") == "eagle3":
        return import_eagle3(folder, backbone)
    if "medusa_num_heads" in config or config.get("model_type") == "medusa":
        return import_medusa(folder, backbone)
    raise UserError(
        f"'{folder / CONFIG}' is neither of Medusa heads (medusa_num_heads) nor of EAGLE-3 heads (architectures "
        f"LlamaForCausalLMEagle3): it says {architectures or sorted(config)[:5]}"
    )
