"""`run.py push`: an export, or heads as they are, to the Hugging Face Hub."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mhc.commands import Parser
from mhc.errors import UserError


def main(argv: list[str]) -> int:
    """Upload DIR to --repo, or tell what would be uploaded; returns the exit status."""
    options = _parser().parse_args(argv)

    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(options.repo)
    except HFValidationError as error:
        raise UserError(f"--repo '{options.repo}' is no name that the Hub takes, such as me/pocket-medusa") from error
    with tempfile.TemporaryDirectory() as temporary:
        folder = _exported(Path(options.folder), options.backbone, Path(temporary) / "heads")
        files = sorted(folder.iterdir())
        visible = "public" if options.public else "private"
        for file in files:
            print(f"{file.name}  {file.stat().st_size / 1e6:,.3f} MB")
        for path, place in local_names(files):
            print(
                f"{path} names '{place}', a folder of this machine: export with --backbone and its Hub name, so that others "
                "find the model",
                file=sys.stderr,
            )
        total = sum(file.stat().st_size for file in files) / 1e6
        told = f"{len(files)} files, {total:,.3f} MB, to the {visible} model repository {options.repo}"
        if options.dry_run or not get_token():
            why = "--dry_run" if options.dry_run else "no token: set HF_TOKEN or run `hf auth login`"
            print(f"dry run ({why}), nothing was uploaded: {told}")
            return 0
        print(told, file=sys.stderr)
        print(f"-> {upload(folder, options.repo, options.public)}")
    return 0


def local_names(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Folders of this machine that JSON files name, each with the file's name. UserError for a damaged file."""
    for file in files:
        if file.suffix != ".json":
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{file}' is damaged ({error}): export again") from error
        for text in _strings(value):
            if os.sep in text and os.path.isdir(text):
                yield file.name, text


def _strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def upload(folder: Path, repo: str, public: bool) -> str:
    """Upload the files of `folder` to a model repository, which is made if there is none; returns its address.

    Raises UserError for what the Hub refuses, and for a public repository where `public` is not said."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    hub = HfApi(library_name="mhc")
    try:
        try:
            private = hub.model_info(repo).private
        except RepositoryNotFoundError:
            private = not public
            hub.create_repo(repo, private=private)
        if not private and not public:
            raise UserError(f"{repo} exists and is public: say --public, or choose another --repo")
        done = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Draft heads, by mhc's run.py push")
    except UserError:
        raise
    except Exception as error:  # its own, and those of whichever HTTP client it has
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the Hub did not take {repo}: {reason}") from error
    return str(done.repo_url)


def _exported(folder: Path, backbone: str | None, out: Path) -> Path:
    """`folder` itself if it is an export; of a run's folder the heads alone, with their card, at `out`."""
    from mhc.checkpoints.heads_folder import DESCRIPTION
    from mhc.export import export
    from mhc.export.card import CARD

    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder: give one that `run.py export` wrote, or a run's with heads")
    kinds = (".md", ".json", ".safetensors")
    files = list(folder.iterdir())
    weights = any(file.suffix == ".safetensors" for file in files)
    whole = (
        weights and (folder / CARD).exists() and any((folder / name).exists() for name in ("config.json", DESCRIPTION))
    )
    if whole and all(file.is_file() and file.suffix in kinds for file in files):
        return folder
    if not (folder / DESCRIPTION).exists():
        raise UserError(f"'{folder}' is neither an export (no {CARD}, or other files beside it) nor a folder of heads")
    return export(folder, "hf", out, backbone).folder


def _parser() -> Parser:
    parser = Parser(
        prog="run.py push",
        description="Upload what `run.py export` wrote, or a run's heads (as format hf, with a model card), to the Hugging "
        "Face Hub. Without a token, or with --dry_run, it tells what it would upload.",
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="an exported folder, or one with drafter.json such as runs/quickstart/cascade")
    add("--repo", required=True, metavar="NAME", help="the repository, e.g. me/pocket-medusa; made if there is none")
    add("--public", action="store_true", help="for everybody to see (default: private)")
    add("--dry_run", action="store_true", help="tell what would be uploaded, and stop")
    add("--backbone", metavar="NAME", help="for a run's heads: their model (default: what the heads name)")
    return parser
