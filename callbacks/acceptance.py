"""Real drafting and verifying inside `fit`: the figure that checkpoints are chosen by."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from mhc.checkpoints.heads_folder import for_decoding
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.evaluation.teacher_forced import predict_all, predicted_tokens_per_step
from mhc.trees.shapes import FixedTree


class Acceptance(Callback):
    """With every validation of `fit` (every epoch, or every n steps: trainer.val_check_interval) decodes the same
    `prompts` validation prompts with a chain of all heads, and logs

        val/tokens_per_step            as decoded: draft, verify, accept (bonus counted); best.ckpt is chosen by it
        val/predicted_tokens_per_step  as predicted from the training forward for the same text
        val/expected_tokens_per_step   (the module's own) as teacher-forced accuracies let expect at any position

    The first two are equal unless training and decoding see different functions; the third differs because rounds do
    not start everywhere alike.
    """

    def __init__(self, prompts: int = 16, max_new_tokens: int = 64):
        if prompts < 1 or max_new_tokens < 2:
            raise UserError(f"Acceptance with {prompts} prompts of {max_new_tokens} tokens has nothing to measure")
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self._answers: list[tuple[list[int], list[int]]] = []  # prompts and what the frozen backbone says to them

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figures = trainer.strategy.broadcast(self.measure(trainer, module))  # all processes decode alike, in step
        module.log_dict({f"val/{name}": value for name, value in figures.items()}, prog_bar=False)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The three side by side, so that a gap shows."""
        seen = trainer.callback_metrics
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            names = ("tokens_per_step", "predicted_tokens_per_step", "expected_tokens_per_step")
            real, predicted, expected = (float(seen.get(f"val/{name}", float("nan"))) for name in names)
            trainer.print(
                f"step {trainer.global_step}: {real:.2f} tokens per step (predicted {predicted:.2f}; {expected:.2f} from any "
                f"position; head 0 right {float(seen.get('val/head0_top1', float('nan'))):.0%})"
            )

    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Decode, and predict the same; the answers themselves are made once, for the backbone does not change."""
        drafter = for_decoding(module.drafter)
        engine = Engine(module.backbone, drafter, FixedTree.chain(drafter.heads))
        if not self._answers:
            prompts = [prompt.ids for prompt in trainer.datamodule.prompts("validation", self.prompts)]
            plain = self._decode(engine, prompts, plain=True)
            self._answers = [(prompt, answer.token_ids) for prompt, answer in zip(prompts, plain)]
        told = [(prompt, answer) for prompt, answer in self._answers if len(answer) > 1]
        if not told:
            raise UserError("the data has no validation prompt whose answer is longer than a token: give it more")
        found = self._decode(engine, [prompt for prompt, _ in told], plain=False)
        predicted = predicted_tokens_per_step(predict_all(drafter, *zip(*told)), drafter.heads)
        tokens, steps = (sum(column) for column in zip(*((len(a.token_ids) - 1, a.steps - 1) for a in found)))
        return {"tokens_per_step": tokens / steps, "predicted_tokens_per_step": predicted}

    def _decode(self, engine: Engine, prompts: list[list[int]], plain: bool) -> list[Any]:
        found = dict(engine.generate_ids(prompts, self.max_new_tokens, self.prompts, plain))
        return [found[number] for number in range(len(prompts))]
