"""What a configuration reads from the environment stays there: it is neither saved nor printed.

`api_key: ${oc.env:MY_KEY}` becomes the key when the command line is parsed. Whoever writes a configuration down afterwards
(config.yaml beside the logs, --print_config, an error) asks here for what the user wrote in place of it.
"""

import os
import re
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from mhc.errors import UserError

SHORTEST = 8  # characters: what is shorter is a number or a word, and hiding it would hide its namesakes
READ = re.compile(r"\$\{oc\.env:\s*(\w+)\s*(,|\})")  # omegaconf's way to read a variable, with a default or without

_written: dict[str, str] = {}  # values that were read, and what stands in the configuration for each


def hidden(text: str) -> str:
    """The text with everything that was read from the environment (of 8 characters or more) as the user wrote it."""
    for value in sorted(_written, key=len, reverse=True):  # a key that holds another one goes first
        text = text.replace(value, _written[value])
    return text


class Parser(LightningArgumentParser):
    """Writes configurations as they were written, where a value came from the environment."""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """As jsonargparse's, which passes here before references are resolved as well. Values are looked at one by one,
        for YAML may quote and fold them. Raises UserError for a variable that is not set."""
        text = super().dump(*args, **kwargs)
        for name, follows in READ.findall(text):
            if follows == "}" and name not in os.environ:
                raise UserError(f"the configuration reads ${{oc.env:{name}}}, which is not set: export {name}")
            if len(os.environ.get(name, "")) >= SHORTEST:
                _written[os.environ[name]] = f"${{oc.env:{name}}}"
        return yaml.safe_dump(_as_written(yaml.safe_load(text)), sort_keys=False) if _written else text


def _as_written(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_written(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_written(one) for one in value]
    found = hidden(str(value))
    return value if found == str(value) else found
