"""The parser of `fit`, `validate` and `test`, which names the nearest setting for a misspelled one.

jsonargparse parses every class of a configuration (a model, its drafter, a callback) with a parser of the same type, so
each knows the names that its class takes. What it raises stays the library's exception, since of several types that a
setting may have the next one may fit; `plainly` makes one clear line of what is left.
"""

import re
import sys
from typing import Any, NoReturn

from mhc.util.env_values import Parser
from mhc.util.options import ParserWithExample, did_you_mean, options_of
from mhc.util.verbs import VERBS, example

UNKNOWN = re.compile(r"ption '([^']+)'")  # in jsonargparse's words
MISSPELLED = re.compile(r"there is no setting '[^']+'(: did you mean [^?]+\?|; there are: [^;]*;)")
CHOICE = re.compile(
    r"class_path 'lightning[\w.]*\.Lightning(Data)?Module':\s+Option"
)  # no model, or no data, was chosen
MISSING = re.compile(r"the following arguments are required: (\w[\w.]*(?:, \w[\w.]*)*)")
NO_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
WHERE = re.compile(r'Parser key "([^"]+)"')


class SettingsParser(Parser, ParserWithExample):
    """Names the nearest setting for one that is not accepted, in a file or as a flag."""

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """As jsonargparse's; its KeyError says which name is near, or which there are."""
        try:
            super().validate(*args, **kwargs)
        except KeyError as error:
            known = [action.dest for action in getattr(error, "subcommand_parser", self)._actions]
            sections = {name.partition(".")[0] for name in known} - {"help"}
            if not (found := UNKNOWN.search(str(error))) or not sections:  # a base class without settings: CHOICE
                raise
            section = found[1].partition(".")[0]
            hint = did_you_mean(found[1], known) or did_you_mean(section, sections - {section})
            hint = hint or f"; there are: {', '.join(sorted(sections))};"
            raise type(error)(f"there is no setting '{found[1]}'{hint}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """As jsonargparse's; an unknown flag is answered with the nearest."""
        if message.startswith("unrecognized arguments: -"):
            flag = message.split()[2].partition("=")[0]
            verbs: dict = next((action.choices for action in self._actions if isinstance(action.choices, dict)), {})
            hint = did_you_mean(flag, options_of(verbs.get(self.args[0], self)))
            message = f"there is no option {flag}{hint or ': most begin with their section, as --data.path does'}"
        super().error(message, ex)


def plainly(message: str) -> str | None:
    """One line for what jsonargparse reports of a misspelled or missing setting, or a misspelled class, with its place; None
    for other reports."""
    tried = (kind.search(message) for kind in (MISSPELLED, MISSING, NO_CLASS, CHOICE))
    if not (found := next(filter(None, tried), None)):
        return None
    keys = WHERE.findall(message[: found.start()])
    place = f"{'.'.join(keys)}: " if keys else ""
    if found.re is MISSPELLED:
        return place + found[0].rstrip(";")
    if found.re is NO_CLASS:
        names = [name for name in dir(sys.modules.get(found[1])) if name[0].isupper() == found[2][0].isupper()]
        hint = did_you_mean(found[2], names)
        return f"{place}{found[1]} has no '{found[2]}'{hint}"
    names = keys if found.re is CHOICE else [".".join([*keys, name]) for name in found[1].split(", ")]
    verb = next((verb for verb in VERBS if names[0].startswith(f"{verb}.")), "fit")
    missing = " and ".join(name.removeprefix(f"{verb}.") for name in names)
    return f"nothing sets {missing}: add a --config that does, e.g. {example(verb)}"
