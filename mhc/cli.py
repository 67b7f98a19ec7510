"""fit, validate and test: LightningCLI with this project's manners."""

import logging
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

from mhc.dry_run import DryRun, choose_batch_size
from mhc.errors import UserError

# References across config files (`${data.init_args.max_length}`) hold in any order and follow overrides.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


class Told(Exception):
    """A dry run is over: nothing is to be instantiated."""


class CLI(LightningCLI):
    """LightningCLI whose --ckpt_path also takes `last` and `best`, the names DrafterCheckpoint writes,
    and which tests and validates the best heads of the run's folder when told nothing else."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})
        told = "tell what the run would take and stop; GIB: of each device, where the run is for another machine"
        parser.add_argument("--dry_run", nargs="?", type=float, const=0.0, metavar="GIB", help=told)
        told = "take the largest power of two of rows that fits, by the dry run's estimate, as data.batch_size"
        parser.add_argument("--auto_batch_size", action="store_true", help=told)

    def before_instantiate_classes(self) -> None:
        chosen = self.config[self.subcommand]
        folder = Path(chosen.trainer.default_root_dir or ".")
        if chosen.auto_batch_size and self.subcommand == "fit":
            choose_batch_size(chosen, folder)
        if chosen.dry_run is not None:
            if self.subcommand != "fit":
                raise UserError(f"--dry_run tells what `fit` would take: `{self.subcommand}` has none")
            DryRun(chosen, chosen.dry_run).tell()
            raise Told
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
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        )
    except Told:
        return 0
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
    return " ".join(lines)[:500]
