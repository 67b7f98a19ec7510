"""What a command line answers to a mistake: the nearest name, and where a verb's example is found."""

import argparse
import difflib
from collections.abc import Iterable

from mhc.util.verbs import VERBS, example


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """`: did you mean X?` for the nearest of the known names, nothing where none is near. Dashes before them say nothing."""
    names = {name.lstrip("-"): name for name in known}
    near = [names[name] for name in difflib.get_close_matches(word.lstrip("-"), names, n=count)]
    return f": did you mean {' or '.join(near)}?" if near else ""


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The options that a parser takes, with their dashes."""
    return [option for action in parser._actions for option in action.option_strings]


class ParserWithExample(argparse.ArgumentParser):
    """A parser of one of the verbs, which its `prog` names: the verb's example is shown below the help."""

    def format_help(self, *arguments) -> str:
        verb = next((word for word in self.prog.split() if word in VERBS), None)
        return super().format_help(*arguments) + (f"\nexample:\n  {example(verb)}\n" if verb else "")
