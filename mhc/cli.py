"""fit, validate and test: LightningCLI with this project's manners."""

import logging
import os
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path

import jsonargparse
import yaml
from jsonargparse import ArgumentError
from lightning import LightningDataModule, LightningModule
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mhc.errors import UserError
from mhc.secrets import Parser, hidden

# References across config files (`${data.init_args.max_length}`) hold in any order and follow overrides.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


class CLI(LightningCLI):
    """LightningCLI whose --ckpt_path also takes `last` and `best`, the names DrafterCheckpoint writes,
    and which tests and validates the best heads of the run's folder when told nothing else."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})

    def before_instantiate_classes(self) -> None:
        chosen = self.config[self.subcommand]
        folder = Path(chosen.trainer.default_root_dir or ".")
        named = chosen.get("ckpt_path")
        if named is None and self.subcommand != "fit" and (folder / "best.ckpt").exists():
            named = "best"
        if named in ("last", "best"):
            named = str(folder / f"{named}.ckpt")
        if named is not None and not Path(named).is_file():
            raise UserError(f"no checkpoint '{named}': `run.py fit` writes last.ckpt and best.ckpt into {folder}")
        require_checkpoint(named)
        chosen["ckpt_path"] = named
        chosen["weights_only"] = True  # reading a checkpoint executes nothing
        loggers = chosen.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                require_wandb(logger.init_args.offline)
                if logger.init_args.offline:  # said once more, for wandb's `settings` in a YAML would say online
                    logger.init_args.mode = "offline"
        if self.subcommand == "test":
            chosen["verbose"] = False  # the decode benchmark prints one table, with what matters


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
    except ArgumentError as error:
        raise UserError(shorten(str(error))) from error
    except ValueError as error:  # jsonargparse wraps what a constructor raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
    return 0


def check_files(arguments: list[str]) -> None:
    """Raise UserError that names the file where a --config or --ckpt_path cannot be read (the libraries
    read both early, and do not say which file it was)."""
    for flag, path in pairwise(arguments):
        if flag == "--ckpt_path" and Path(path).is_file():
            require_checkpoint(path)
        if flag == "--config":
            try:
                yaml.safe_load(Path(path).read_text())
            except OSError as error:
                raise UserError(f"config '{path}' cannot be read ({error.strerror}): give a YAML file") from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"config '{path}' is not valid YAML: {error}") from error


def require_checkpoint(path: str | None) -> None:
    """Raise UserError unless the file is a whole archive, as checkpoints are."""
    if path is not None and not zipfile.is_zipfile(path):
        raise UserError(f"checkpoint '{path}' is damaged or none of ours: use another, or train again")


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


def shorten(message: str) -> str:
    """The telling lines of jsonargparse's report as one line."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return hidden(" ".join(lines))[:500]
