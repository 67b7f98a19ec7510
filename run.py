#!/usr/bin/env python
"""mhc from the command line.

New here? `make quickstart` trains and compares heads in minutes; then `generate`, `chat` and `serve` use them.

{verbs}

`run.py VERB --help` (or `run.py help VERB`) shows a verb's options and an example; --version the version. `fit`,
`validate` and `test` take YAML files that compose: later --config files and flags (--data.path my.json) override earlier
ones.
"""

import importlib
import keyword
import os
import sys

from mhc.util.verbs import VERBS

LIGHTNING = ("fit", "validate", "test")
COMMANDS = tuple(verb for verb in VERBS if verb not in LIGHTNING)


def main(arguments: list[str]) -> int:
    """Run a command; other than fit, validate and test they do not import Lightning, so their --help is quick."""
    from mhc.errors import UserError
    from mhc.util.system import print_everything, refusal, require_utf8

    print_everything()
    try:
        require_utf8(arguments)
        status = run(arguments)
        sys.stdout.flush()  # while a full disk is still one line
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        problem = str(error) if isinstance(error, UserError) else refusal(error)
        if problem is None:
            raise
        print(f"error: {' '.join(problem.split())}", file=sys.stderr)
        return 2


def run(arguments: list[str]) -> int:
    """The command's exit status; raises UserError for whatever the user can mend."""
    from mhc.errors import UserError

    command, *rest = arguments or ["--help"]
    if command == "help" and rest:
        command, rest = rest[0], ["--help"]
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command == "--version":
        from mhc.version import __version__

        print(f"mhc {__version__}")
        return 0
    if command in COMMANDS:
        module = command + "_" * keyword.iskeyword(command)
        return importlib.import_module(f"mhc.commands.{module}").main(rest)
    if command in LIGHTNING:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return importlib.import_module("mhc.cli").main([command, *rest])
    raise UserError(unknown(command))


def usage() -> str:
    """The help of run.py itself, with every verb."""
    verbs = "\n".join(f"  python run.py {name:10}  {verb.about}" for name, verb in VERBS.items())
    return (__doc__ or "").strip().replace("{verbs}", verbs)


def unknown(command: str) -> str:
    """What is said of a verb that there is not."""
    from mhc.util.options import did_you_mean

    hint = did_you_mean(command, [*VERBS, "help", "--help", "--version"])
    if command.startswith("-") and not hint:
        hint = ": options come after the verb"
    return f"unknown verb '{command}'{hint} (run.py --help lists them)"


if __name__ == "__main__":
    from mhc.util.system import restart_in_utf8

    restart_in_utf8()
    sys.exit(main(sys.argv[1:]))
