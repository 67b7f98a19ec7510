#!/usr/bin/env python
"""mhc from the command line.

  python run.py fit      --config ...   train draft heads (or a small language model)
  python run.py validate --config ...   accuracy of each head on held-out conversations
  python run.py test     --config ...   decode held-out prompts plain and with heads, and compare

  python run.py quickstart              the whole road on the embedded model, in minutes
  python run.py compare                 train every family of heads alike: which one pays here
  python run.py lm                      a small language model from nothing, and heads that make it fast
  python run.py sweep                   try settings by grid or at random, and see which are best: a wandb sweep file
  python run.py generate                answer a prompt with trained heads
  python run.py chat                    talk to it in the terminal, and see which tokens the heads guessed
  python run.py serve                   OpenAI's API and a page to chat at, many answers at once
  python run.py tune                    find the tree with which trained heads are fastest on this machine
  python run.py distill                 let the backbone answer prompts: the data heads learn best from
  python run.py collect                 keep the backbone's features on disk, so that heads train without it
  python run.py tokenizer               train a byte-level BPE tokenizer with a chat template
  python run.py evaluate                what a language model is worth: perplexity, exams, lm-evaluation-harness
  python run.py answer                  MT-Bench questions to answer files for FastChat's judge and Spec-Bench
  python run.py speed                   two answer files to a table of speedups by category, with intervals
  python run.py export                  heads in the formats of vLLM, SGLang and TGI, checked before they are there
  python run.py import                  published Medusa and EAGLE-3 heads as a folder of ours
  python run.py push                    heads, or an export, to the Hugging Face Hub
  python run.py inspect                 show what a data file becomes: tokens, and which are learned from

Every verb explains itself with --help. `fit`, `validate` and `test` take YAML files that compose:
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
    """Dispatch a verb; commands are reached without importing Lightning, so their --help is quick."""
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    from mhc.errors import UserError

    try:
        if verb in COMMANDS:
            module = verb + "_" * keyword.iskeyword(verb)
            return importlib.import_module(f"mhc.commands.{module}").main(arguments[1:])
        if verb in LIGHTNING:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            return importlib.import_module("mhc.cli").main(arguments)
        raise UserError(f"unknown verb '{verb}': choose from {', '.join(LIGHTNING + COMMANDS)}")
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
