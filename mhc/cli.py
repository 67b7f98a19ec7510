"""fit, validate and test: LightningCLI with this project's manners."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from callbacks.run_checkpoint import RunCheckpoint
from mhc.checkpoints.settings import flat
from mhc.checkpoints.training_file import CheckpointFiles, newest_whole, previous, require_whole
from mhc.errors import UserError
from mhc.estimate.choose import choose_batch_size, dry_run
from mhc.training.trainer_settings import require_trainer
from mhc.util.env_values import hidden
from mhc.util.locks import LOCK, alone
from mhc.util.settings_parser import SettingsParser, plainly
from mhc.util.system import refusal

# References across config files (`${data.init_args.max_length}`) hold in any order and follow overrides.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

# What jsonargparse says besides: which other types a value might have had, and how it passed the value on.
TRIED = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value.*(type:|NestedArg)"
)


PARSING: dict[str, Any] = {
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "parser_class": SettingsParser,
    "parser_kwargs": {"parser_mode": "omegaconf+", "exit_on_error": False},
}


class DryRunFinished(Exception):
    """Raised after a dry run: nothing is to be instantiated."""


class CLI(LightningCLI):
    """LightningCLI whose runs write last.ckpt, whose --ckpt_path also takes `last` and `best` (DrafterCheckpoint's), and
    which tests and validates the best heads of the run's folder by default."""

    def __init__(self, *args: Any, **kwargs: Any):
        with ExitStack() as self.held:  # to the end of the run, which is all in here
            super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # datamodules.batching shares the rows out itself
        parser.set_defaults({"seed_everything": 0, "trainer.use_distributed_sampler": False})
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        text = "print what the run would take and stop; GIB: of each device, where the run is for another machine"
        parser.add_argument("--dry_run", nargs="?", type=float, const=0.0, metavar="GIB", help=text)
        text = "set data.batch_size to the largest power of two of rows that fits, by the dry run's estimate"
        parser.add_argument("--auto_batch_size", action="store_true", help=text)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets hyperparameters in a checkpoint overrule the configuration, and reads it unchecked for that."""

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        for section in ("trainer", "checkpoint"):
            if not isinstance(settings.get(section), Namespace):
                raise UserError(
                    f"{section} is '{settings.get(section)}': it holds settings by name (run.py fit --help)"
                )
        require_trainer(
            settings.trainer, (settings.model.get("init_args") or {}).get("dtype", "float32"), settings.dry_run
        )
        folder = Path(settings.trainer.default_root_dir or ".")
        if self.subcommand == "fit" and settings.dry_run is None and first_process():
            self.held.enter_context(alone(folder / LOCK, "--trainer.default_root_dir"))
        if settings.auto_batch_size and self.subcommand == "fit":
            choose_batch_size(settings, self.instantiate, folder)
        if settings.dry_run is not None:
            if self.subcommand != "fit":
                raise UserError(f"--dry_run estimates what `fit` would take: `{self.subcommand}` has none")
            dry_run(settings, self.instantiate, settings.dry_run).print()
            raise DryRunFinished
        checkpoint = settings.get("ckpt_path")
        if checkpoint is None and self.subcommand != "fit":
            if exists(folder / "best.ckpt"):
                checkpoint = "best"
            elif "drafter" in settings.model.init_args:
                warning = f"warning: no best.ckpt in '{folder}': `{self.subcommand}` looks at untrained heads"
                print(warning, file=sys.stderr)
        settings["ckpt_path"] = None if checkpoint is None else self.checkpoint_file(checkpoint, folder)
        settings["weights_only"] = True  # reading a checkpoint executes nothing
        loggers = settings.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                require_wandb(logger.init_args.offline)
                if logger.init_args.offline:  # once more, since wandb's `settings` in a YAML would say online
                    logger.init_args.mode = "offline"
        if self.subcommand == "test":
            settings["verbose"] = False  # the decode benchmark prints one table, with what matters

    def instantiate(self, part: Namespace) -> Namespace:
        """The objects of a part of the settings (its model, its data), as the run would make them."""
        return self._parser(self.subcommand).instantiate_classes(part)

    def checkpoint_file(self, checkpoint: str, folder: Path) -> str | None:
        """The whole checkpoint that `last`, `best` or a path means; None where a run was stopped before its first."""
        path = folder / f"{checkpoint}.ckpt" if checkpoint in ("last", "best") else Path(checkpoint)
        if checkpoint in ("last", "best") and exists(path):
            return str(newest_whole(path))
        if checkpoint == "last" and self.subcommand == "fit" and next(folder.glob("*/*/config.yaml"), None):
            print(f"no checkpoint in {folder} yet: starting from the beginning", file=sys.stderr)
            return None
        if not path.is_file():
            raise UserError(f"no checkpoint '{path}': `run.py fit` writes last.ckpt and best.ckpt into {folder}")
        require_whole(path)
        return str(path)

    def before_fit(self) -> None:
        trainer: Any = self.trainer
        for callback in trainer.callbacks:
            if isinstance(callback, RunCheckpoint):
                written = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
                callback.settings = flat(yaml.safe_load(written))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        return super().instantiate_trainer(plugins=[*plugins, CheckpointFiles()], **kwargs)


def first_process() -> bool:
    """Whether this is the process, of all that a launcher started on all machines, that writes the run's files."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return vars(rank_zero_only).get("rank", 0) == 0 and node == "0"


def exists(path: Path) -> bool:
    """Whether there is a checkpoint at `path`, or the one before it."""
    return path.exists() or previous(path).exists()


class ParsedCLI(CLI):
    """Parses settings as `fit` does and makes no object until `instantiate` is called. defaults: for what the settings
    leave out, by key."""

    def __init__(self, arguments: list[str], defaults: dict[str, Any]):
        self._defaults = defaults
        with one_line_errors():
            super().__init__(LightningModule, LightningDataModule, args=arguments, run=False, **PARSING)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults(self._defaults)

    def before_instantiate_classes(self) -> None:
        """Nothing is run."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""


def main(arguments: list[str]) -> int:
    """Run one subcommand; raises UserError for whatever the user can mend."""
    quiet()
    try:
        with one_line_errors():
            check_files(arguments)
            CLI(LightningModule, LightningDataModule, args=arguments, save_config_kwargs={"overwrite": True}, **PARSING)
    except DryRunFinished:
        pass
    return 0


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the libraries say about settings into UserError, and find what the system refused below it."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(shorten(str(error))) from error
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {shorten(str(error))}") from error
    except (ValueError, TypeError, MisconfigurationException) as error:  # jsonargparse wraps what a constructor raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError) and refusal(cause) is None:
            cause = cause.__cause__ or cause.__context__
        if cause is None and refused_by_lightning(error):
            raise UserError(f"the trainer refuses: {shorten(str(error))}") from error
        raise cause or error from None


def refused_by_lightning(error: Exception) -> bool:
    """Whether the words are Lightning's own, which are about settings."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("lightning.")


def check_files(arguments: list[str]) -> None:
    """Raise UserError that names the file where a --config cannot be read (the libraries do not say which it was)."""
    for flag, path in pairwise(arguments):
        if flag == "--config":
            try:
                if not isinstance(yaml.safe_load(Path(path).read_text(encoding="utf-8")), dict):
                    raise UserError(
                        f"config '{path}' holds no settings: give a YAML file such as configs/quickstart.yaml"
                    )
            except OSError as error:
                raise UserError(f"config '{path}' cannot be read ({error.strerror}): give a YAML file") from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"config '{path}' is not valid YAML: {' '.join(str(error).split())}") from error


def require_wandb(offline: bool) -> None:
    """Raise UserError, before anything is loaded, where Weights & Biases is not installed, or shall be online and nobody
    is logged in."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError('Weights & Biases is not installed: pip install -e ".[wandb]"') from error
    if offline or os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        logged_in = wandb.login(prompt=False)
    except wandb.Error as error:
        raise UserError(f"Weights & Biases refuses the login: {hidden(str(error))}") from error
    if not logged_in:
        raise UserError(
            "Weights & Biases is to be online and nobody is logged in: run `wandb login`, set WANDB_API_KEY, or leave "
            "--trainer.logger.offline true"
        )


def quiet() -> None:
    """Silence warnings that a user cannot act on."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("ignore", PossibleUserWarning)
    for message in ("not supported by the model summary", "args parameter is intended"):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # about DeepSpeed's calls


def shorten(message: str) -> str:
    """The lines of jsonargparse's report that say what is wrong, as one line without the types it tried in vain."""
    if line := plainly(message):
        return hidden(line)
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in lines if line and not TRIED.match(line)]
    return hidden(" ".join(lines))[:500]
