"""fit, validate and test: LightningCLI with this project's manners."""

import logging
import warnings
from pathlib import Path

import jsonargparse
from jsonargparse import ArgumentError
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mhc.errors import UserError

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
            raise UserError(
                f"no checkpoint '{named}': `run.py fit` writes last.ckpt and best.ckpt into {folder}"
            )
        chosen["ckpt_path"] = named


def main(arguments: ArgsType) -> int:
    """Run one subcommand; raises UserError for whatever the user can mend."""
    quiet()
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
    except ArgumentError as error:
        raise UserError(shorten(str(error))) from error
    return 0


def quiet() -> None:
    """Keep what a user cannot act on off the screen."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "not supported by the model summary",
        "args parameter is intended",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")


def shorten(message: str) -> str:
    """The telling lines of jsonargparse's report as one line."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return " ".join(lines)[:500]
