"""What a newcomer meets: verbs, options and settings that are misspelled or missing, examples to copy, `help` and --version."""

import argparse
import ast
import importlib
import keyword
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import run
from mhc.commands import quickstart
from mhc.util.verbs import VERBS, shell_line
from tests.helpers.runs import CASCADE, COMMON, ROOT


def parser_of(verb: str) -> argparse.ArgumentParser:
    return importlib.import_module(f"mhc.commands.{verb}{'_' * keyword.iskeyword(verb)}")._parser()


def misspelled(word: str) -> str:
    """Two neighbouring letters in the middle exchanged, or one doubled where they are the same."""
    middle = len(word) // 2
    first, second = word[middle : middle + 2].ljust(2)
    return word[:middle] + (first + second if first == second else second) + first + word[middle + 2 :]


def refused(capsys, *arguments: str) -> str:
    """The one line that a call gets."""
    assert run.main(list(arguments)) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.startswith("error: ") and told.err.count("\n") == 1, told
    return told.err


def taken(capsys, *arguments: str) -> str:
    """What a call prints that ends in the parser (--help, --print_config)."""
    with pytest.raises(SystemExit) as ended:
        run.main(list(arguments))
    assert not ended.value.code
    return capsys.readouterr().out


def accept(capsys, verb: str, arguments: list[str]) -> None:
    """The verb's own parser takes these."""
    if verb in run.LIGHTNING:
        assert "class_path" in taken(capsys, verb, *arguments, "--print_config")
    else:
        parser_of(verb).parse_args(arguments)


# ---- verbs


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelled_verb_is_answered_with_the_nearest(capsys, verb):
    line = refused(capsys, misspelled(verb))
    assert f"did you mean {verb}?" in line and len(line) < 100
    assert f"did you mean {verb}?" in refused(capsys, "help", misspelled(verb))


@pytest.mark.parametrize("word", ["xyzzy", "--checkpoint", "", "--verison"])
def test_other_words_for_a_verb_get_a_short_line(capsys, word):
    assert len(refused(capsys, word, "runs/quickstart/cascade")) < 120


def test_nothing_help_and_version_teach(capsys):
    printed = []
    for arguments in ([], ["help"], ["--help"], ["-h"]):
        assert run.main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1 and "make quickstart" in printed[0]
    assert all(f"run.py {verb} " in printed[0] and told.about in printed[0] for verb, told in VERBS.items())
    assert run.main(["--version"]) == 0
    assert re.fullmatch(r"mhc \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert taken(capsys, "help", "generate") == taken(capsys, "generate", "--help")


# ---- options and settings


@pytest.mark.parametrize("verb", run.COMMANDS)
def test_every_misspelled_option_is_named_before_what_is_missing(capsys, verb):
    options = [option for action in parser_of(verb)._actions for option in action.option_strings if option[:2] == "--"]
    assert len(options) > 1
    for option in options:
        middle = len(option) // 2 + 1
        wrong = option[:middle] + option[middle - 1 :]  # a letter twice
        assert f"{wrong}: did you mean {option}?" in refused(capsys, verb, wrong, "3")
        assert f"{wrong}: did you mean {option}?" in refused(capsys, verb, f"{wrong}=3")
    assert "there is no option --xyzzy" in refused(capsys, verb, "--xyzzy")


@pytest.mark.parametrize("verb", run.COMMANDS)
def test_every_missing_option_is_named(capsys, verb):
    missing = [action for action in parser_of(verb)._actions if action.required and action.nargs != "*"]
    if missing:
        line = refused(capsys, verb)
        assert all((action.option_strings or [action.metavar])[0] in line for action in missing)


@pytest.mark.parametrize("verb", run.LIGHTNING)
def test_a_bare_fit_is_told_of_configs(capsys, verb):
    line = refused(capsys, verb)
    assert f"run.py {verb} --config configs/" in line and "data and model" in line
    assert all((ROOT / file).is_file() for file in re.findall(r"configs/\S+", line))
    line = refused(capsys, verb, *COMMON)  # no heads yet
    assert "model.drafter" in line and "--config configs/drafter/" in line
    assert len(line) < 400


WRONG = {  # keys of a configuration, and what is said of each
    "cofnig": "did you mean --config?",
    "dryrun": "did you mean --dry_run?",
    "trainer.max_epohcs": "did you mean --trainer.max_epochs?",
    "data.paht": "data: there is no setting 'paht': did you mean path?",
    "data.init_args.paht": "data: there is no setting 'paht': did you mean path?",
    "model.bakcbone": "model: there is no setting 'bakcbone': did you mean backbone?",
    "model.drafter.heeds": "model.drafter: there is no setting 'heeds': did you mean heads?",
    "trainer.logger.naem": "trainer.logger: there is no setting 'naem': did you mean name?",
    "trainer.callbacks.prompts": "Expected a <class 'int'>",
    "data.class_path": "Expected",
    "model.xyzzy": "there are: backbone, distillation_temperature, drafter, dtype",
    "backbone": "most begin with their section",
}
IN_A_FILE = {
    "trainer: {max_epohcs: 3}": "'trainer.max_epohcs': did you mean trainer.max_epochs?",
    "daat: {init_args: {path: x}}": "did you mean data?",
    "data: {init_args: {paht: x}}": "data: there is no setting 'paht': did you mean path?",
    "model: {init_args: {drafter: {init_args: {heeds: 3}}}}": "model.drafter: there is no setting 'heeds': did you mean heads?",
    "trainer: {callbacks: [{class_path: callbacks.Acceptance, init_args: {promts: 3}}]}": "did you mean prompts?",
    "checkpoint: {evry_n_steps: 3}": "did you mean checkpoint.every_n_steps?",
    "trainer: {callbacks: [callbacks.Aceptance]}": "trainer.callbacks: callbacks has no 'Aceptance': did you mean Acceptance?",
    "trainer: {callbacks: [{class_path: callbacks.Acceptance, init_args: {prompts: x}}]}": "Expected a <class 'int'>",
    "trainer: 3": "trainer is '3'",
    "trainer: null": "trainer is 'None'",
    "": "wrong.yaml' holds no settings",
    "- 1": "wrong.yaml' holds no settings",
    "data: {class_path: datamodules.ConversationsData}": "did you mean ConversationData?",
    "checkpoint: [3]": "checkpoint is '[3]'",
    "model: {init_args: {drafter: mhc.drafters.Cascde}}": "model.drafter: mhc.drafters has no 'Cascde': did you mean Cascade?",
}


@pytest.mark.parametrize("key", WRONG)
def test_a_misspelled_setting_is_answered_with_the_nearest(capsys, key):
    line = refused(capsys, "fit", *COMMON, *CASCADE, f"--{key}=x3")
    assert WRONG[key] in line and len(line) < 520
    assert line == refused(capsys, "fit", *COMMON, *CASCADE, f"--{key}", "x3")


@pytest.mark.parametrize("text", IN_A_FILE)
def test_so_is_one_in_a_file(capsys, tmp_path, text):
    (tmp_path / "wrong.yaml").write_text(text)
    line = refused(capsys, "validate", *COMMON, *CASCADE, "--config", str(tmp_path / "wrong.yaml"))
    assert IN_A_FILE[text] in line and len(line) < 600


def test_what_is_misspelled_comes_before_what_is_missing(capsys):
    assert "did you mean path?" in refused(capsys, "fit", *COMMON, "--data.paht", "x")
    assert "did you mean --trainer.max_steps?" in refused(capsys, "test", "--trainer.max_stpes", "3")
    assert "nothing sets data: add a --config" in refused(capsys, "fit", "--data.path", "x")


def test_an_options_help_is_written_once():
    """Of options that several verbs have, each text stands in one function of mhc.commands."""
    texts: dict[str, list[str]] = {}
    for path in (ROOT / "mhc/commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
                texts.setdefault(node.value.value, []).append(path.name)
    assert len(texts) > 60
    assert not {text: files for text, files in texts.items() if len(files) > 1}
    for option in (
        "--checkpoint",
        "--tree",
        "--max_new_tokens",
        "--plain",
        "--limit",
        "--trainer",
        "--device",
        "--top_p",
    ):
        files = [path.name for path in (ROOT / "mhc/commands").glob("*.py") if f'"{option}",' in path.read_text()]
        added = [
            name
            for name in files
            if re.search(rf'add(_argument)?\(\s*"{option}"', (ROOT / "mhc/commands" / name).read_text())
        ]
        assert len(added) == 1 or (option, sorted(added)) == ("--limit", ["__init__.py", "evaluate.py"]), (
            option,
            added,
        )


# ---- examples and printed commands


def example_of(capsys, verb: str) -> list[str]:
    """The words of the example in a verb's --help, as a shell reads them."""
    lines = taken(capsys, verb, "--help").splitlines()
    words = shlex.split(lines[lines.index("example:") + 1])
    assert words[1:3] == [shlex.split(shell_line())[1], verb] and Path(words[1]).samefile(ROOT / "run.py")
    return words[3:]


def outputs(arguments: list[str]) -> set[str]:
    """What a call writes."""
    written = {value for flag, value in pairwise(arguments) if flag in ("--out", "--trainer.default_root_dir")}
    if "--both" in arguments:
        written |= {path.replace(".jsonl", "-plain.jsonl") for path in written}
    return written


def test_every_help_has_an_example_that_works_after_the_ones_before(capsys):
    written: set[str] = set()
    for verb in VERBS:
        arguments = example_of(capsys, verb)
        accept(capsys, verb, arguments)
        for flag, word in zip(["", *arguments], arguments):
            if "/" in word and flag != "--repo" and not (flag == "--out" or " " in word):
                new = flag == "--trainer.default_root_dir" and verb == "fit"
                assert new or word in written or (ROOT / word).is_file(), f"{verb}: {word} is nowhere"
        written |= outputs(arguments)
        if verb == "quickstart":
            stages = quickstart._stages(Path(arguments[arguments.index("--out") + 1]), 4000, "cpu")
            written |= {path for _, stage in stages for path in outputs(stage)}


@pytest.mark.parametrize("activated", [True, False])
def test_printed_commands_run_where_they_are_printed(tmp_path, activated):
    """From the project's folder and from another, with the environment's Python on the path and without."""
    folder = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": f"{folder}:/usr/bin:/bin" if activated else "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    for cwd in (ROOT, tmp_path):
        code = "from mhc.util.verbs import shell_line; print(shell_line('--version'))"
        line = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True).stdout
        assert line.startswith("python ") == activated and ("run.py" in shlex.split(line)) == (cwd == ROOT)
        told = subprocess.run(["sh", "-c", line], cwd=cwd, env=env, capture_output=True, text=True)
        assert told.stdout.startswith("mhc "), (line, told.stderr)


def test_commands_print_no_python_of_their_own():
    for path in (ROOT / "mhc/commands").glob("*.py"):
        tree = ast.parse(path.read_text())
        documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
        docstrings = {id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert "python run.py" not in node.value, f"{path}:{node.lineno}: see mhc.util.verbs.shell_line"


README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```(?:bash)?\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ").splitlines()
LINES = [line for line in BLOCKS if re.match(r"(python|\.venv/bin/python) \S+\.py", line)]


@pytest.mark.parametrize("line", LINES)
def test_the_readmes_commands_are_taken(capsys, line):
    _, script, *arguments = shlex.split(line, comments=True)
    assert (ROOT / script).is_file() and "..." not in arguments
    assert all((ROOT / word).exists() for word in arguments if word.startswith("configs/"))
    if script == "run.py":
        accept(capsys, arguments[0], arguments[1:])
