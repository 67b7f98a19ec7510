"""What `run.py fit` would take where draft heads are trained on a frozen backbone."""

from dataclasses import replace
from math import ceil

import torch
from jsonargparse import Namespace

from mhc.backbone.model import Backbone, load_config, load_tokenizer
from mhc.drafters import Drafter
from mhc.estimate.dry_run import DryRun, Written
from mhc.estimate.fake_step import Rehearsal, Weights, rehearse
from mhc.estimate.memory import Decoding, Setting, memory, weight_bytes
from mhc.training.trainer_settings import class_of


class HeadsDryRun(DryRun):
    """A run that trains draft heads on a frozen backbone."""

    def __init__(self, chosen: Namespace, gib: float | None = None):
        model = chosen.model.init_args
        self.config = load_config(model.backbone)
        told = next((c.init_args for c in chosen.trainer.callbacks or [] if c.class_path.endswith("Acceptance")), None)
        super().__init__(chosen, gib, load_tokenizer(model.backbone), told.prompts if told else 0, heads=True)
        self.decoding = told and Decoding(told.prompts, self.survey.prompt + told.max_new_tokens)
        self.setting = Setting(
            rows=self.rows,
            length=self.survey.longest,
            anchors=self.survey.batch_anchors,
            dtype=getattr(torch, model.dtype),
            autocast=self.autocast,
            heads_dtype=self.trained_dtype,
            objective=model.objective,
            quantize=model.quantize,
            on_gpu=self.on_gpu,
            collected=not hasattr(self.data, "conversations"),
        )

    def build(self, backbone: Backbone) -> Drafter:
        drafter = self.chosen.model.init_args.drafter
        return class_of(drafter.class_path)(backbone, **drafter.get("init_args", {}))

    def rehearsed(self, rows: int) -> Rehearsal:
        chosen = self.setting
        anchors = ceil(chosen.anchors * rows / chosen.rows)
        kinds = chosen.objective, chosen.dtype, chosen.autocast, chosen.heads_dtype
        return rehearse(self.config, self.build, rows, chosen.length, anchors, *kinds)

    def memory(self, rows: int, found: Rehearsal) -> tuple[dict[str, int], dict[str, int]]:
        setting = replace(self.setting, rows=rows)
        return memory(found, setting, self.shards, self.config, self.decoding, self.process)

    def parameters(self, found: Rehearsal) -> list[tuple[str, Weights]]:
        chosen = self.chosen.model.init_args
        frozen = f"{chosen.backbone}, frozen, {self.setting.quantize or chosen.dtype}"
        return [(frozen, found.backbone), (f"{chosen.drafter.class_path.rpartition('.')[2]}, trained", found.drafter)]

    def loaded(self, found: Rehearsal) -> int:
        whole = weight_bytes(found.backbone, self.setting.dtype, None)
        return 0 if self.chosen.model.init_args.sharded else whole

    def written(self, found: Rehearsal) -> Written:
        heads = 4 * found.drafter.total
        # two moments in each
        return Written("heads", heads, 3 * heads, 5, "last and best, the one before each, one being written")

    def work(self, found: Rehearsal) -> tuple[float, str]:
        seen, setting = self.survey, self.setting
        forward = 0 if setting.collected else found.forward_operations * seen.tokens / (setting.rows * setting.length)
        heads = found.heads_operations * seen.anchors / setting.anchors
        share = heads / max(1.0, forward + heads)
        return (
            forward + heads,
            f" (kl and lk more): {forward + heads:.1e} operations an epoch, {share:.0%} of them of the heads",
        )

    def computed_in(self) -> torch.dtype:
        return self.setting.dtype

    def lighter(self) -> str:
        return (
            "hold the backbone in fewer bytes (--model.dtype bfloat16, --model.quantize int8), "
            "shorten --data.max_length, or shard it over several devices (configs/trainer/zero3.yaml)"
        )
