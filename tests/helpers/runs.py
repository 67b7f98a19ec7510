"""What runs of the command line are made of: config files, a small file of conversations, flags that make them short."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMON = ["--config", str(ROOT / "configs/quickstart.yaml"), "--config", str(ROOT / "configs/trainer/cpu.yaml")]
CASCADE = ["--config", str(ROOT / "configs/drafter/cascade.yaml")]


def sums(folder: Path) -> Path:
    """A small file of conversations about sums."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {a} plus {b}?"},
                {"role": "assistant", "content": f"{a} plus {b} is {a + b}."},
            ]
        }
        for a in range(8)
        for b in range(8)
    ]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small(folder, path) -> list[str]:
    """Flags that make a run take seconds."""
    return [
        *("--data.path", str(path), "--trainer.default_root_dir", str(folder), "--data.batch_size", "16"),
        *("--trainer.max_epochs", "1", "--trainer.callbacks.prompts", "2", "--trainer.callbacks.max_new_tokens", "8"),
    ]
