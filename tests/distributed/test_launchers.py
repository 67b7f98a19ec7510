"""The README's commands for several processes, read out of it and run as they stand, on a tiny backbone and two CPU processes.

Each costs some 20 seconds, so the two that stand for two machines run always, and all with MHC_LAUNCHERS=all.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mhc.checkpoints.training_file import CheckpointFiles
from tests.helpers.backbones import save_tiny_backbone
from tests.helpers.runs import sums

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().split("## Several GPUs, several machines")[1].split("\n## ")[0]
LINES = re.search(r"```bash\n(.*?)```", SECTION, re.DOTALL)[1].replace("\\\n", " ").splitlines()
SETTING = next(line for line in LINES if line.startswith("FIT="))
COMMANDS = [line for line in LINES if line and not line.startswith(("#", "FIT="))]
ALL = os.environ.get("MHC_LAUNCHERS") == "all"


def test_the_readme_names_every_way():
    started = {(command.split()[0], "num_nodes" in command) for command in COMMANDS}
    ways = {("python", False), ("torchrun", False), ("deepspeed", False), ("torchrun", True), ("srun", True)}
    assert started == ways
    named = set(re.findall(r"configs/trainer/(\S+)\.yaml --trainer", SECTION))
    assert named == {"ddp", "fsdp", "zero2", "zero3"}
    for file in re.findall(r"`([\w-]+\.yaml)`", SECTION):
        assert (ROOT / "configs/trainer" / file).exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_backbone(folder / "backbone")
    return folder / "backbone", sums(folder)


def on_cpu(command: str, tiny: tuple[Path, Path], out: Path) -> str:
    """Flags that make a run small and lift what asks for a GPU."""
    backbone, data = tiny
    flags = {
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_steps": "2",
        "trainer.default_root_dir": str(out),
        "trainer.callbacks.prompts": "2",
        "trainer.callbacks.max_new_tokens": "8",
        "model.backbone": str(backbone),
        "data.path": str(data),
        "data.batch_size": "8",
    }
    if "zero" in command:
        flags["trainer.strategy.class_path"] = "tests.helpers.strategy_runs.ZeROOnCPU"
    return shlex.join(part for name, value in flags.items() for part in (f"--{name}", value))


def processes(command: str, port: int) -> list[tuple[str, dict[str, str]]]:
    """What to run side by side: a two-machine command once for each machine, with the environment it would find there."""
    command = command.replace("first-machine", "127.0.0.1").replace("29500", str(port))
    if command.startswith("srun"):
        nodes, tasks = (int(re.search(rf"--{name} (\d+)", command)[1]) for name in ("nodes", "ntasks-per-node"))
        assert tasks == 1
        common = {
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NAME": "fit",
            "SLURM_NTASKS": str(nodes * tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
            "SLURM_NNODES": str(nodes),
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_LOCALID": "0",
            "MASTER_PORT": str(port),
        }
        started = re.sub(r"^srun .*? python", "python", command)
        return [(started, common | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}) for node in range(nodes)]
    if "--node_rank 0" in command:
        return [(command.replace("--node_rank 0", f"--node_rank {node}"), {}) for node in range(2)]
    return [(command, {"MASTER_PORT": str(port)} if command.startswith("python") else {})]


@pytest.mark.parametrize("command", [command for command in COMMANDS if ALL or "num_nodes" in command], ids=str)
def test_commands_of_the_readme_run_as_two_processes(command, tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "SLURM"))}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    out = tmp_path / "run"
    running = [
        subprocess.Popen(
            ["bash", "-c", f"{SETTING}\n{line} {on_cpu(command, tiny, out)}"],
            cwd=ROOT,
            env=environment | further,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line, further in processes(command, port)
    ]
    told = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), told[0][-3000:]
    figures = json.loads((out / "training.json").read_text())
    assert figures["steps"] == 2
    saved = CheckpointFiles().load_checkpoint(out / "last.ckpt")
    assert saved["global_step"] == 2 and set(saved["optimizer_states"][0]["state"]) == set(saved["state_dict"])
    assert "MEMBER: 2/2" in "".join(told)
