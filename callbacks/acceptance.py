"""Real drafting and verifying inside `fit`: the figure that checkpoints are chosen by."""

from lightning import Callback, LightningModule, Trainer

from mhc.checkpoints.heads_folder import for_decoding
from mhc.decoding.request import Generation
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.evaluation.teacher_forced import predict_all, predicted_tokens_per_step
from mhc.training.data import data_of
from mhc.training.draft_module import DraftModule
from mhc.trees.shapes import FixedTree


class Acceptance(Callback):
    """With every validation of `fit` (every epoch, or every n steps: trainer.val_check_interval) decodes the same
    `prompts` validation prompts with a chain of all heads, and logs

        val/tokens_per_step            as decoded: draft, verify, accept (bonus counted); best.ckpt is chosen by it
        val/predicted_tokens_per_step  as predicted from the training forward for the same text
        val/expected_tokens_per_step   (the module's own) as the teacher-forced accuracies imply for any position

    The first two are equal unless training and decoding see different functions; the third differs because rounds do
    not start everywhere alike.
    """

    def __init__(self, prompts: int = 16, max_new_tokens: int = 64):
        if prompts < 1 or max_new_tokens < 2:
            raise UserError(f"Acceptance with {prompts} prompts of {max_new_tokens} tokens has nothing to measure")
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self._answers: list[tuple[list[int], list[int]]] = []  # prompts, and the frozen backbone's answers

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figures = trainer.strategy.broadcast(self.measure(trainer, module))  # all processes decode alike, in step
        module.log_dict({f"val/{name}": value for name, value in figures.items()}, prog_bar=False)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The three side by side, so that a gap shows."""
        logged = trainer.callback_metrics
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            names = ("tokens_per_step", "predicted_tokens_per_step", "expected_tokens_per_step")
            real, predicted, expected = (float(logged.get(f"val/{name}", float("nan"))) for name in names)
            trainer.print(
                f"step {trainer.global_step}: {real:.2f} tokens per step (predicted {predicted:.2f}; {expected:.2f} from any "
                f"position; head 0 right {float(logged.get('val/head0_top1', float('nan'))):.0%})"
            )

    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Decode, and predict the same; the answers themselves are made once, for the backbone does not change."""
        assert isinstance(module, DraftModule)
        drafter = for_decoding(module.drafter)
        engine = Engine(module.backbone, drafter, FixedTree.chain(drafter.draft_length))
        if not self._answers:
            prompts = [prompt.ids for prompt in data_of(trainer).prompts("validation", self.prompts)]
            plain = self._decode(engine, prompts, plain=True)
            answers = [(prompt, answer.token_ids) for prompt, answer in zip(prompts, plain)]
            self._answers = [(prompt, answer) for prompt, answer in answers if len(answer) > 1]
        if not self._answers:
            raise UserError("the data has no validation prompt whose answer is longer than a token: give it more")
        decoded = self._decode(engine, [prompt for prompt, _ in self._answers], plain=False)
        predicted = predicted_tokens_per_step(predict_all(drafter, *zip(*self._answers)), drafter.draft_length)
        tokens, steps = sum(len(a.token_ids) - 1 for a in decoded), sum(a.steps - 1 for a in decoded)
        return {"tokens_per_step": tokens / steps, "predicted_tokens_per_step": predicted}

    def _decode(self, engine: Engine, prompts: list[list[int]], plain: bool) -> list[Generation]:
        answers = dict(engine.generate_ids(prompts, self.max_new_tokens, self.prompts, plain))
        return [answers[number] for number in range(len(prompts))]
