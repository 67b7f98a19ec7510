"""The verbs of run.py that are not Lightning's, one file each with `main(arguments) -> exit status`."""

import argparse
from typing import NoReturn

from mhc.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see python {self.prog} --help)")
