"""A sweep file in the schema of Weights & Biases, and the trials that it stands for.

One file serves both: `wandb sweep FILE` and `wandb agent` (an account, any number of machines, bayes as well), and
`run.py sweep FILE` (no account, one trial at a time, grid and random). What is supported here has the same meaning
there; anything else is refused. https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

import itertools
import math
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mhc.errors import UserError

METHODS = ("grid", "random")
KEYS = ("name", "description", "project", "entity", "program", "command", "method", "metric", "parameters", "run_cap")
KEYS_OF = {  # the keys of a parameter of each distribution; q may be left out
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "q_log_uniform_values": ("min", "max", "q"),
}
FINITE = ("constant", "categorical", "int_uniform")
COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]  # wandb's default


@dataclass(frozen=True)
class Parameter:
    """A flag without its dashes, and the values that it may take."""

    name: str
    distribution: str
    values: list[Any] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0

    @property
    def varied(self) -> bool:
        return self.distribution != "constant" and len(self.values) != 1

    @property
    def logarithmic(self) -> bool:
        return "log" in self.distribution

    def quantile(self, share: float) -> Any:
        """The value below which this share (0 to 1) of all draws lies."""
        if self.distribution == "int_uniform":
            return int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
        if self.probabilities:
            sums = itertools.accumulate(self.probabilities)
            return next((value for value, below in zip(self.values, sums) if share < below), self.values[-1])
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.logarithmic:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        if not self.step:
            return value
        stepped = round(value / self.step) * self.step
        return int(stepped) if isinstance(self.step, int) else float(f"{stepped:.12g}")


@dataclass(frozen=True)
class Sweep:
    """A sweep file that has been checked."""

    name: str
    method: str
    metric: str
    maximise: bool
    parameters: list[Parameter]
    program: str
    command: list[str]
    cap: int | None

    @property
    def varied(self) -> list[Parameter]:
        """The parameters that differ between trials."""
        return [parameter for parameter in self.parameters if parameter.varied]

    def trials(self, count: int | None, seed: int) -> list[dict[str, Any]]:
        """The settings of each trial by parameter. A grid has all combinations, the last parameter the fastest; a random
        trial depends only on the seed, its number and the parameters' names.

        Raises UserError where random sampling has no limit.
        """
        cap = count or self.cap
        if self.method == "grid":
            choices = [
                range(int(p.low), int(p.high) + 1) if p.distribution == "int_uniform" else p.values
                for p in self.parameters
            ]
            return [dict(zip(self.names, chosen)) for chosen in itertools.islice(itertools.product(*choices), cap)]
        if cap is None:
            raise UserError(
                f"sweep '{self.name}' draws at random without a limit: give --trials, or run_cap in the file"
            )
        return [
            {p.name: p.quantile(random.Random(f"{seed}/{number}/{p.name}").random()) for p in self.parameters}
            for number in range(1, cap + 1)
        ]

    @property
    def names(self) -> list[str]:
        return [parameter.name for parameter in self.parameters]

    def arguments(self, settings: dict[str, Any], folder: Path) -> list[str]:
        """The command line of a trial whose results go to `folder`, as `wandb agent` writes it, but without the
        WandbLogger, which needs an account."""
        parts = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            "${args}": [f"--{name}={value}" for name, value in settings.items()],
        }
        words = [word for part in self.command for word in parts.get(part, [part]) if "WandbLogger" not in word]
        return [*words, f"--trainer.default_root_dir={folder}"]


def read_sweep(path: Path) -> Sweep:
    """The sweep in a YAML file. Raises UserError with the key for whatever cannot be run locally."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"sweep '{path}' cannot be read ({error.strerror}): give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"sweep '{path}' is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"sweep '{path}' is not a mapping: see configs/sweeps for examples")
    if unknown := sorted(set(content) - set(KEYS)):
        raise UserError(
            f"sweep '{path}': local sweeps do not support '{unknown[0]}' (only {', '.join(KEYS)}): leave it out, or run "
            "the sweep by `wandb agent`"
        )
    method, metric, described = (content.get(key) for key in ("method", "metric", "parameters"))
    if method not in METHODS:
        raise UserError(
            f"sweep '{path}': method is {method!r}; local sweeps support {' and '.join(METHODS)}, `wandb agent` runs "
            "bayes and the rest"
        )
    if not isinstance(metric, dict) or not {"name"} <= set(metric) <= {"name", "goal"}:
        raise UserError(
            f"sweep '{path}': metric must have a name and may have a goal, e.g. val/tokens_per_step, maximize"
        )
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise UserError(f"sweep '{path}': metric.goal is {metric['goal']!r}: choose minimize or maximize")
    if not isinstance(described, dict) or not described:
        raise UserError(f"sweep '{path}': parameters is empty: name the flags to vary, e.g. data.batch_size")
    cap = content.get("run_cap")
    if cap is not None and not (type(cap) is int and cap > 0):
        raise UserError(f"sweep '{path}': run_cap is {cap!r}: it must be a whole number above 0")
    parameters = [_parameter(path, str(name), described[name]) for name in sorted(described, key=str)]
    for parameter in parameters:
        if method == "grid" and parameter.distribution not in FINITE:
            raise UserError(f"sweep '{path}': a grid cannot run through {parameter.name}: give it `values`")
    return Sweep(
        name=str(content.get("name", path.stem)),
        method=method,
        metric=str(metric["name"]),
        maximise=metric.get("goal", "minimize") == "maximize",
        parameters=parameters,
        program=str(content.get("program", "")),
        command=_command(path, content),
        cap=cap,
    )


def _command(path: Path, content: dict[str, Any]) -> list[str]:
    """The command's parts; of its macros only those of COMMAND are supported."""
    command = content.get("command", COMMAND)
    if not isinstance(command, list) or "${args}" not in command:
        raise UserError(f"sweep '{path}': command must be a list with ${{args}} in it, where the trial's flags go")
    for part in map(str, command):
        if (part.startswith("${") and part.endswith("}") and part not in COMMAND) or "${envvar:" in part:
            raise UserError(f"sweep '{path}': command has {part}; local sweeps support {', '.join(COMMAND)}")
    program = content.get("program")
    if not Path(str(program)).is_file():
        raise UserError(f"sweep '{path}': program '{program}' does not exist here: start from the folder that has it")
    return [str(part) for part in command]


def _parameter(path: Path, name: str, given: Any) -> Parameter:
    where = f"sweep '{path}': parameter {name}"
    if not isinstance(given, dict):
        raise UserError(f"{where} is {given!r}: give it value, values, or min and max")
    if "parameters" in given:
        raise UserError(f"{where} is nested: name its parts with dots, as run.py's flags are")
    distribution = given.get("distribution") or _inferred(given)
    if distribution not in KEYS_OF:
        raise UserError(f"{where} has distribution {distribution!r}; local sweeps support {', '.join(KEYS_OF)}")
    shape = {key: value for key, value in given.items() if key != "distribution"}
    needed = set(KEYS_OF[distribution]) - {"q"}
    if not needed <= set(shape) <= set(KEYS_OF[distribution]):
        raise UserError(f"{where} ({distribution}) has {', '.join(shape) or 'nothing'}: it takes {', '.join(needed)}")
    if "min" not in shape:
        values = [shape["value"]] if distribution == "constant" else shape["values"]
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: values must be a list of at least one")
        if not all(isinstance(value, (str, int, float, list, dict)) for value in values):
            raise UserError(f'{where} has a value that no flag can take (for null write "null"): {values}')
        shares = shape.get("probabilities", [])
        if shares and not (_numbers(shares) and len(shares) == len(values) and math.isclose(sum(shares), 1)):
            raise UserError(f"{where}: probabilities must be as many as values and add up to 1")
        return Parameter(name, distribution, values, shares)
    low, high, step = shape["min"], shape["max"], shape.get("q", 1 if distribution.startswith("q_") else 0)
    if not _numbers((low, high, step)):
        raise UserError(
            f"{where}: min, max and q must be numbers, are {low!r}, {high!r}, {step!r} (YAML wants 1.0e-3 for 1e-3)"
        )
    if distribution == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"{where}: min and max of int_uniform must be whole, are {low} and {high}")
    if low >= high or step < 0 or ("log" in distribution and low <= 0):
        raise UserError(f"{where}: min must be below max, and above 0 for {distribution}: {low}, {high}")
    return Parameter(name, distribution, low=low, high=high, step=step)


def _inferred(given: dict[str, Any]) -> str:
    """The distribution of a parameter that names none, as wandb infers it."""
    if "value" in given:
        return "constant"
    if "probabilities" in given:
        return "categorical_w_probabilities"
    if "values" in given:
        return "categorical"
    whole = all(isinstance(given.get(key), int) for key in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """For each flag the fewest of its last parts that distinguish it from the others."""
    names = list(names)
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        unique = (end for end in ends if sum(("." + other).endswith("." + end) for other in names) == 1)
        short[name] = next(unique, name)
    return short


def shown(value: Any) -> str:
    """A parameter's value in tables and plots."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
