#!/usr/bin/env python
"""mhc from the command line.

  python run.py fit      --config ...   train draft heads (or a small language model)
  python run.py validate --config ...   accuracy of each head on held-out conversations
  python run.py test     --config ...   decode held-out prompts plain and with heads, and compare

  python run.py quickstart              all stages on the embedded model, in minutes
  python run.py compare                 train every family of heads alike and compare their speed
  python run.py lm                      train a small language model from scratch, and heads for it
  python run.py sweep                   search settings by grid or at random, from a wandb sweep file
  python run.py generate                answer a prompt with trained heads
  python run.py chat                    chat in the terminal, with accepted draft tokens in green
  python run.py serve                   an OpenAI-compatible API and a chat page, with continuous batching
  python run.py tune                    find the tree with which trained heads are fastest on this machine
  python run.py distill                 let the target model answer prompts: the best training data for heads
  python run.py collect                 store the target model's features, so that heads train without it
  python run.py tokenizer               train a byte-level BPE tokenizer with a chat template
  python run.py evaluate                evaluate a language model: perplexity, exams, lm-evaluation-harness
  python run.py answer                  answer MT-Bench questions for FastChat's judge and Spec-Bench
  python run.py speed                   a table of speedups by category from two answer files
  python run.py export                  write heads in the formats of vLLM, SGLang and TGI, and check them
  python run.py import                  turn published Medusa and EAGLE-3 heads into a heads folder
  python run.py push                    upload heads, or an export, to the Hugging Face Hub
  python run.py inspect                 show the tokens of a data file, and which are trained on

Every command has --help. `fit`, `validate` and `test` take YAML files that compose:
later --config files and flags (--data.path my.json) override earlier ones.
"""

import importlib
import keyword
import os
import sys

LIGHTNING = ("fit", "validate", "test")
COMMANDS = (
    *("answer", "chat", "collect", "compare", "distill", "evaluate", "export", "generate", "import", "inspect", "lm"),
    *("push", "quickstart", "serve", "speed", "sweep", "tokenizer", "tune"),
)


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

    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if command in COMMANDS:
        module = command + "_" * keyword.iskeyword(command)
        return importlib.import_module(f"mhc.commands.{module}").main(arguments[1:])
    if command in LIGHTNING:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return importlib.import_module("mhc.cli").main(arguments)
    raise UserError(f"unknown command '{command}': choose from {', '.join(LIGHTNING + COMMANDS)}")


if __name__ == "__main__":
    from mhc.util.system import restart_in_utf8

    restart_in_utf8()
    sys.exit(main(sys.argv[1:]))
