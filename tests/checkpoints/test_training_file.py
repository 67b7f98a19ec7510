"""Checkpoints under fault: there is always one that loads, what is broken is recognised, and nothing in a file is run."""

import builtins
import os
import pickle
import random
import resource
import signal
from hashlib import sha256

import pytest
import torch

from mhc.checkpoints.training_file import MARK, TRAILER, CheckpointFiles, newest_whole, previous
from mhc.errors import UserError

FILES = CheckpointFiles()


def state(step: int) -> dict:
    """A checkpoint of some 20 kB."""
    return {
        "state_dict": {"w": torch.full((64, 64), float(step))},
        "global_step": step,
        "loops": {"a": [1, {"b": None}]},
    }


def saved(folder, *steps: int):
    path = folder / "last.ckpt"
    for step in steps:
        FILES.save_checkpoint(state(step), path)
    return path


def step_of(path) -> int:
    """The step of the newest checkpoint that loads, which holds what was saved at that step."""
    found = FILES.load_checkpoint(newest_whole(path))
    assert torch.equal(found["state_dict"]["w"], state(found["global_step"])["state_dict"]["w"])
    return found["global_step"]


def test_the_one_before_is_kept(tmp_path):
    path = saved(tmp_path, 1, 2, 3)
    assert step_of(path) == 3 and FILES.load_checkpoint(previous(path))["global_step"] == 2
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "last.previous.ckpt"}


def save_until_killed(path, number: int) -> None:
    """Save a checkpoint and die right before the call with this number that reaches a disk, if there are so many."""
    made = 0

    def dying(function):
        def called(*arguments, **named):
            nonlocal made
            made += 1
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return called

    for name in ("unlink", "fsync", "replace", "open", "close"):
        setattr(os, name, dying(getattr(os, name)))
    opened = dying(open)
    builtins.open = lambda at, mode="r": Watched(opened(at, mode), dying) if mode == "wb" else opened(at, mode)
    FILES.save_checkpoint(state(3), path)


class Watched:
    """A file whose writes are done at once, each of them a moment to die in."""

    def __init__(self, file, dying):
        self.file = file
        self.write = dying(lambda data: self.file.write(data) and self.file.flush())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def flush(self):
        self.file.flush()


def test_killed_before_every_call(tmp_path):
    """At most the checkpoint that was being written is lost, and the next one is written over what was left behind."""
    number, lost, killed = 0, 0, True
    while killed:
        number += 1
        path = saved(tmp_path / str(number), 1, 2)
        child = os.fork()
        if not child:
            save_until_killed(path, number)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        found = step_of(path)
        assert found in (2, 3)
        lost += found == 2
        FILES.save_checkpoint(state(4), path)
        assert step_of(path) == 4 and not path.with_name("last.ckpt.writing").exists()
    assert number > 12 and 8 < lost < number  # it was killed at so many calls, the last of them behind the renaming


def test_full_disk_at_every_write(tmp_path):
    whole = saved(tmp_path / "whole", 1).stat().st_size
    for limit in range(0, whole, whole // 40):
        path = saved(tmp_path / str(limit), 1, 2)
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                FILES.save_checkpoint(state(3), path)
            except UserError as problem:
                os._exit(2 if "--ckpt_path last" in str(problem) and "\n" not in str(problem) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        assert step_of(path) == 2 and {file.name for file in path.parent.iterdir()} == {path.name, previous(path).name}


def test_every_flipped_bit_is_found_and_the_one_before_used(tmp_path, capsys):
    path = saved(tmp_path, 1, 2)
    data, dice = path.read_bytes(), random.Random(0)
    for _ in range(200):
        at = dice.randrange(8 * len(data))
        path.write_bytes(data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :])
        assert step_of(path) == 1
        with pytest.raises(UserError, match="damaged"):
            FILES.load_checkpoint(path)
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 200 and all(line.startswith("warning: ") and "last.previous.ckpt" in line for line in warned)


def test_half_written_missing_and_foreign_files_are_recognised(tmp_path):
    path = saved(tmp_path, 1, 2)
    data = path.read_bytes()
    torch.save(state(3), tmp_path / "plain.ckpt")
    for wrong in (b"", data[:-1], data[: len(data) // 2], data + b"x", (tmp_path / "plain.ckpt").read_bytes()):
        path.write_bytes(wrong)
        assert step_of(path) == 1
    path.unlink()
    assert step_of(path) == 1
    previous(path).write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"last\.ckpt"):
        newest_whole(path)


def test_a_damaged_file_does_not_take_the_place_of_a_whole_one(tmp_path):
    path = saved(tmp_path, 1, 2)
    path.write_bytes(path.read_bytes()[:-9])
    FILES.save_checkpoint(state(3), path)
    assert step_of(path) == 3 and FILES.load_checkpoint(previous(path))["global_step"] == 1


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_whole_file_is_not_run(tmp_path, protocol):
    path, marker = tmp_path / "last.ckpt", tmp_path / "ran"
    if protocol == "torch":
        torch.save({"state_dict": {}, "evil": Evil(marker)}, path)
        payload = path.read_bytes()
    else:
        payload = pickle.dumps({"state_dict": Evil(marker)})
    path.write_bytes(payload + TRAILER.pack(MARK, len(payload), sha256(payload).digest()))
    with pytest.raises(UserError, match="not loaded"):
        FILES.load_checkpoint(newest_whole(path), weights_only=False)  # whatever is asked for
    assert not marker.exists()


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside, folder = saved(tmp_path / "elsewhere", 7), tmp_path / "run"
    folder.mkdir()
    path = folder / "last.ckpt"
    for link in (path, previous(path)):
        link.symlink_to(outside)
        with pytest.raises(UserError, match="elsewhere"):
            newest_whole(path)
        link.unlink()
    (folder / "last.ckpt.writing").symlink_to(outside)
    before = outside.read_bytes()
    assert step_of(saved(folder, 1)) == 1 and outside.read_bytes() == before
