"""fit, validate and test: LightningCLI with this project's manners."""

import errno
import logging
import os
import re
import sys
import traceback
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from safetensors import SafetensorError

from callbacks.run_checkpoint import RunCheckpoint
from mhc.checkpoints.training_file import CheckpointFiles, newest_whole, previous, require_whole
from mhc.errors import UserError
from mhc.estimate.choose import choose_batch_size, dry_run
from mhc.training.trainer_settings import require_trainer
from mhc.util.env_values import Parser, hidden

# References across config files (`${data.init_args.max_length}`) hold in any order and follow overrides.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

# What jsonargparse says around the point: which other types a value might have had, and how it passed the value on.
TRIED = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value.*(type:|NestedArg)"
)


class DryRunFinished(Exception):
    """Raised after a dry run: nothing is to be instantiated."""


class CLI(LightningCLI):
    """LightningCLI whose runs write last.ckpt, whose --ckpt_path also takes `last` and `best` (DrafterCheckpoint's), and
    which tests and validates the best heads of the run's folder when told nothing else."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # datamodules.batching shares the rows out itself
        parser.set_defaults({"seed_everything": 0, "trainer.use_distributed_sampler": False})
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        told = "tell what the run would take and stop; GIB: of each device, where the run is for another machine"
        parser.add_argument("--dry_run", nargs="?", type=float, const=0.0, metavar="GIB", help=told)
        told = "take the largest power of two of rows that fits, by the dry run's estimate, as data.batch_size"
        parser.add_argument("--auto_batch_size", action="store_true", help=told)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets hyperparameters in a checkpoint overrule the configuration, and reads it unchecked for that."""

    def before_instantiate_classes(self) -> None:
        chosen = self.config[self.subcommand]
        require_trainer(chosen.trainer, (chosen.model.get("init_args") or {}).get("dtype", "float32"), chosen.dry_run)
        folder = Path(chosen.trainer.default_root_dir or ".")
        if chosen.auto_batch_size and self.subcommand == "fit":
            choose_batch_size(chosen, self.instantiate, folder)
        if chosen.dry_run is not None:
            if self.subcommand != "fit":
                raise UserError(f"--dry_run tells what `fit` would take: `{self.subcommand}` has none")
            dry_run(chosen, self.instantiate, chosen.dry_run).print()
            raise DryRunFinished
        named = chosen.get("ckpt_path")
        if named is None and self.subcommand != "fit":
            if kept(folder / "best.ckpt"):
                named = "best"
            elif "drafter" in chosen.model.init_args:
                told = f"warning: no best.ckpt in '{folder}': `{self.subcommand}` looks at untrained heads"
                print(told, file=sys.stderr)
        chosen["ckpt_path"] = None if named is None else self.found(named, folder)
        chosen["weights_only"] = True  # reading a checkpoint executes nothing
        loggers = chosen.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                require_wandb(logger.init_args.offline)
                if logger.init_args.offline:  # said once more, for wandb's `settings` in a YAML would say online
                    logger.init_args.mode = "offline"
        if self.subcommand == "test":
            chosen["verbose"] = False  # the decode benchmark prints one table, with what matters

    def instantiate(self, part: Namespace) -> Namespace:
        """The objects of a part of the settings (its model, its data), as the run would make them."""
        return self._parser(self.subcommand).instantiate_classes(part)

    def found(self, named: str, folder: Path) -> str | None:
        """The whole checkpoint that is meant by `last`, `best` or a path; None where a run was stopped before its first."""
        path = folder / f"{named}.ckpt" if named in ("last", "best") else Path(named)
        if named in ("last", "best") and kept(path):
            return str(newest_whole(path))
        if named == "last" and self.subcommand == "fit" and next(folder.glob("*/*/config.yaml"), None):
            print(f"no checkpoint in {folder} yet: starting from the beginning", file=sys.stderr)
            return None
        if not path.is_file():
            raise UserError(f"no checkpoint '{path}': `run.py fit` writes last.ckpt and best.ckpt into {folder}")
        require_whole(path)
        return str(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        return super().instantiate_trainer(plugins=[*plugins, CheckpointFiles()], **kwargs)


def kept(path: Path) -> bool:
    """Whether there is a checkpoint at `path`, or the one before it."""
    return path.exists() or previous(path).exists()


def main(arguments: list[str]) -> int:
    """Run one subcommand; raises UserError for whatever the user can mend."""
    quiet()
    check_files(arguments)
    try:
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        )
    except DryRunFinished:
        return 0
    except ArgumentError as error:
        raise UserError(shorten(str(error))) from error
    except (ValueError, TypeError, MisconfigurationException) as error:  # jsonargparse wraps what a constructor raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and refused_by_lightning(error):
            raise UserError(f"the trainer refuses: {shorten(str(error))}") from error
        raise cause or error from None
    except (OSError, SafetensorError) as error:
        full = [
            text for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if (text := os.strerror(number)) in str(error)
        ]
        if not full:
            raise
        raise UserError(f"{full[0]}: make room for logs and heads, then go on with --ckpt_path last") from error
    return 0


def refused_by_lightning(error: Exception) -> bool:
    """Whether the words are Lightning's own, which are about settings."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("lightning.")


def check_files(arguments: list[str]) -> None:
    """Raise UserError that names the file where a --config cannot be read (the libraries do not say which it was)."""
    for flag, path in pairwise(arguments):
        if flag == "--config":
            try:
                yaml.safe_load(Path(path).read_text())
            except OSError as error:
                raise UserError(f"config '{path}' cannot be read ({error.strerror}): give a YAML file") from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"config '{path}' is not valid YAML: {error}") from error


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
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        raise UserError(f"Weights & Biases refuses the login: {hidden(str(error))}") from error
    if not known:
        raise UserError(
            "Weights & Biases is to be online and nobody is logged in: run `wandb login`, set WANDB_API_KEY, or leave "
            "--trainer.logger.offline true"
        )


def quiet() -> None:
    """Keep what a user cannot act on off the screen."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("ignore", PossibleUserWarning)
    for message in ("not supported by the model summary", "args parameter is intended"):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # about DeepSpeed's calls


def shorten(message: str) -> str:
    """The telling lines of jsonargparse's report as one line: without the types it tried in vain, but for what they say."""
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in lines if line and not TRIED.match(line)]
    return hidden(" ".join(lines))[:500]
