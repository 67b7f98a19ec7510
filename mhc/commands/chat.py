"""`run.py chat`: talk with a model, with its heads or plainly; on a terminal, or through a pipe with one question a line."""

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from mhc.commands import (
    Parser,
    add_backbone,
    add_checkpoint,
    add_max_new_tokens,
    add_sampling,
    add_tree,
    engine_of,
    sampling_of,
)
from mhc.errors import UserError

if TYPE_CHECKING:
    from mhc.decoding.request import Generation
    from mhc.engine import Engine

COMMANDS = {
    "!!exit": "end; so does an empty line, or Ctrl-D",
    "!!reset": "forget all that was said",
    "!!remove": "forget the last question and its answer",
    "!!regen": "answer the last question again; where answers are drawn, with the next seed",
    "!!save FILE": "keep the conversation in a file",
    "!!load FILE": "resume the conversation in a file",
    "!!plain": "switch the heads off, and on again",
    "!!help": "show this",
}
USAGE = {usage.split()[0]: usage for usage in COMMANDS}
WITH_FILE = [name for name, usage in USAGE.items() if name != usage]
PROBES, FEWEST = 16, 3  # plain steps timed behind an answer: so many, but few where they take
UNNOTICED, SHARE = 0.25, 0.25  # more seconds than this, and more than this part of the answer's
WARMING = 8  # tokens decoded both ways beforehand
SHORTEST = 4  # steps of an answer whose speed says anything


def main(argv: list[str]) -> int:
    """Talk until the user ends it; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.max_new_tokens < 1 or options.max_steps < 0:
        raise UserError("--max_new_tokens must be at least 1, --max_steps at least 0 (no limit)")
    sampling = sampling_of(options)
    engine = engine_of(options)
    from mhc.chat.conversation import Conversation
    from mhc.chat.screen import Pipe, Terminal
    from mhc.text.messages import clean_text

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = Terminal(list(USAGE), WITH_FILE) if terminal else Pipe()
    conversation = Conversation(clean_text(options.system), sampling)
    chat = Chat(engine, screen, conversation, options.max_new_tokens, options.max_steps)
    chat.warm_up()
    if engine.backbone.quantised:
        screen.note(str(engine.backbone.quantised))
    if terminal:
        guesses = "its heads' guesses are green" if engine.speculates else "decoded plainly"
        screen.note(f"{engine.backbone.name}, {guesses}. !!help shows the commands, an empty line ends.")
    try:
        chat.run()
    except BrokenPipeError:  # whoever read the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Chat:
    """A conversation with an engine on a screen (mhc.chat.screen). max_steps: forwards of the backbone an answer, 0: any."""

    def __init__(self, engine: "Engine", screen, conversation, max_new_tokens: int, max_steps: int = 0):
        self.engine, self.screen, self.conversation = engine, screen, conversation
        self.max_new_tokens, self.max_steps = max_new_tokens, max_steps
        self.plain = False
        self.shortened = False  # whether it was said that the oldest exchanges are left out

    def warm_up(self) -> None:
        """Decode a little both ways, since the first steps of a process are slow."""
        from mhc.decoding.request import DecodeRequest

        ids, _ = self.conversation.prompt(self.engine.backbone.tokenizer, "Hello!", 1 << 30, 1)
        for plain in {True, not self.engine.speculates}:
            for _ in self.engine.stream([DecodeRequest(ids, WARMING, plain=plain)]):
                pass

    def run(self) -> None:
        """Ask and answer until an empty line, the end of the input or !!exit."""
        while (text := (self.screen.ask() or "").strip()) not in ("", "!!exit"):
            try:
                if text.startswith("!!") and "\n" not in text:
                    self.command(text)
                else:
                    self.answer(text)
            except UserError as problem:
                self.screen.refuse(problem)

    # ---- commands

    def command(self, text: str) -> None:
        """Do what a line that starts with !! says; UserError where that cannot be done."""
        name, _, file = text.partition(" ")
        if name not in USAGE:
            raise UserError(f"unknown command '{name}': {', '.join(USAGE)}")
        if bool(file.strip()) != (name in WITH_FILE):
            raise UserError(f"'{text}': write {USAGE[name]}")
        if name in WITH_FILE:
            path = Path(os.path.expanduser(file.strip()))
            self.save(path) if name == "!!save" else self.load(path)
        else:
            plainly = {"!!reset": self.reset, "!!remove": self.remove, "!!regen": self.again, "!!plain": self.toggle}
            plainly.get(name, self.help)()

    def help(self) -> None:
        """Show the commands."""
        wide = max(map(len, COMMANDS))
        self.screen.note("\n".join(f"{usage:{wide}}  {what}" for usage, what in COMMANDS.items()))
        self.screen.note("Alt-Enter, or a backslash before Enter, begins a new line. Ctrl-C stops an answer.")

    def reset(self) -> None:
        """Forget what was said."""
        self.shortened = False
        self.screen.note(f"forgotten: {_exchanges(self.conversation.reset())}")

    def remove(self) -> None:
        """Forget the last exchange."""
        self.screen.note(f"forgotten: {self.conversation.remove().question}")

    def again(self) -> None:
        """Answer the last question anew. Until that is done the old answer stands."""
        conversation = self.conversation
        sampling, exchanges = conversation.sampling, [*conversation.exchanges]
        question, answered = conversation.again().question, False
        if not sampling.temperature:
            self.screen.note("temperature 0: the same question gets the same answer")
        try:
            answered = self.answer(question)
        finally:
            if not answered:
                conversation.sampling, conversation.exchanges = sampling, exchanges

    def toggle(self) -> None:
        """Switch the heads off or on."""
        if not self.engine.speculates:
            raise UserError("there are no heads to switch off: start with --checkpoint")
        self.plain = not self.plain
        self.screen.note("heads off: one token a step" if self.plain else "heads on")

    def save(self, path: Path) -> None:
        """Keep the conversation; a file that exists is overwritten if the user says so."""
        overwrite = os.path.isfile(path) and self.screen.confirms(f"'{path}' exists: overwrite it?")
        self.conversation.save(path, overwrite)
        self.screen.note(f"saved: {_exchanges(len(self.conversation.exchanges))} in {path}")

    def load(self, path: Path) -> None:
        """Resume another conversation."""
        self.conversation, self.shortened = type(self.conversation).load(path), False
        sampling = self.conversation.sampling
        drawn = f"temperature {sampling.temperature:g}, seed {sampling.seed}" if sampling.temperature else "greedy"
        self.screen.note(f"loaded: {_exchanges(len(self.conversation.exchanges))}, {drawn}")

    # ---- answers

    def answer(self, question: str) -> bool:
        """Answer a question on the screen and remember both; False where it was stopped before there was anything."""
        from mhc.chat.conversation import INTERRUPTED, Exchange
        from mhc.text.messages import clean_text

        question, context = clean_text(question), self.engine.backbone.context
        tokenizer, room = self.engine.backbone.tokenizer, min(self.max_new_tokens, context // 4)
        ids, left_out = self.conversation.prompt(tokenizer, question, context, room)
        if left_out and not self.shortened:
            self.shortened = True
            self.screen.note(f"the model's context ({context} tokens) is full: it no longer sees what was said first")
        answered = False
        with self.screen.answering() as stop:
            generation = self._speak(ids, stop)
            if generation.finish_reason == INTERRUPTED and not generation.text:
                self.screen.note("[stopped before it said anything: not kept]")
            else:
                self.conversation.exchanges.append(Exchange(question, generation.text, generation.finish_reason))
                answered = True
                self.screen.note(f"[{self._figures(ids, generation, stop)}]")
        return answered

    def _speak(self, ids: list[int], stop) -> "Generation":
        """Decode an answer and show it as it comes. Its seconds are those of decoding, not of drawing."""
        from mhc.chat.conversation import INTERRUPTED
        from mhc.decoding.request import DecodeRequest, Generation
        from mhc.text.detokenizer import TextStream

        generation, text, shown = Generation(), TextStream(self.engine.backbone.tokenizer), self.screen.answer()
        request = DecodeRequest(ids, self.max_new_tokens, self.conversation.sampling, self.plain)
        outputs = self.engine.stream([request])
        try:
            while True:
                started = time.perf_counter()
                output = next(outputs)
                generation.seconds += time.perf_counter() - started
                generation.append(output)
                shown.push(text.push(output.draft_tokens), guessed=True)
                shown.push(text.push([output.bonus_token]), guessed=False)
                ended = output.finish_reason or ("length" if generation.steps == self.max_steps else None)
                generation.finish_reason = ended or INTERRUPTED
                if ended or stop.is_set():
                    break
        except KeyboardInterrupt:  # a second Ctrl-C, while a step took its time; through a pipe the first
            if not stop.is_set():
                raise
            generation.finish_reason = INTERRUPTED
        shown.push(text.finish(), guessed=False)
        shown.finish()
        generation.text = text.text
        return generation

    def _figures(self, ids: list[int], generation: "Generation", stop) -> str:
        """What an answer took, and how that compares with plain decoding."""
        rate = f"{len(generation.token_ids) / generation.seconds:.0f} tokens/s"
        reason = {"stop": "", "length": ", cut at the limit"}.get(generation.finish_reason, ", stopped")
        if self.plain or not self.engine.speculates:
            return f"{len(generation.token_ids)} tokens, plain, {rate}{reason}"
        figures = f"{generation.tokens_per_step:.2f} tokens per step, {rate}"
        times = [] if stop.is_set() or generation.steps < SHORTEST else self._plain_times(ids, generation.seconds, stop)
        if len(times) > FEWEST:
            step = median(times[1:])
            speedup = (times[0] + step * (len(generation.token_ids) - 1)) / generation.seconds
            figures += f", {speedup:.2f}x plain ({1000 * step:.1f} ms a token, just timed on {len(times) - 1})"
        return f"{len(generation.token_ids)} tokens, {figures}{reason}"

    def _plain_times(self, ids: list[int], seconds: float, stop) -> list[float]:
        """Seconds of the prefill and of the first steps when the same prompt is answered plainly, behind an answer that took
        `seconds`. So machine, load and context are those of the answer."""
        from mhc.decoding.request import DecodeRequest

        times: list[float] = []
        outputs = self.engine.stream([DecodeRequest(ids, 1 + PROBES, self.conversation.sampling, plain=True)])
        most = max(UNNOTICED, SHARE * seconds)
        while not stop.is_set() and (len(times) <= FEWEST or sum(times[1:]) < most):
            started = time.perf_counter()
            if next(outputs, None) is None:
                break
            times.append(time.perf_counter() - started)
        return times


def _exchanges(count: int) -> str:
    return "1 exchange" if count == 1 else f"{count} exchanges"


def _parser() -> Parser:
    parser = Parser(
        prog="run.py chat",
        description="Talk with a model. Answers come as they are decoded, and are the model's own, token for token; tokens that "
        "its heads guessed are green. Through a pipe: one question a line, answers to standard output.",
        epilog="Commands: " + "; ".join(f"{usage} ({what})" for usage, what in COMMANDS.items()) + ".",
    )
    add = parser.add_argument
    add_checkpoint(parser)
    add("--system", default="", metavar="TEXT", help="a system prompt")
    add_sampling(parser)
    add_max_new_tokens(parser, 512)
    add("--max_steps", type=int, default=0, metavar="N", help="forwards of the model an answer at most (default: any)")
    add_tree(parser)
    add_backbone(parser)
    return parser
