"""Pushing against a Hub that lives in the test: what is made, what is sent, and what is not."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mhc.checkpoints.heads_folder import save_drafter
from mhc.commands.push import main
from mhc.drafters import Medusa
from mhc.errors import UserError
from mhc.export import export
from mhc.trees.shapes import FixedTree


class Hub(ThreadingHTTPServer):
    """As much of the Hub as an upload asks for. repositories: private or not, by name; files: what was sent, by name."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.removeprefix("/api/models/").split("?")[0].split("/revision")[0]
        if name in self.server.repositories:
            return self.answer({"id": name, "private": self.server.repositories[name], "siblings": [], "sha": "0" * 40})
        self.answer({"error": "Repository not found"}, 404, "RepoNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path.endswith("/create"):
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] == "them":
                return self.answer({"error": "You do not own the namespace them"}, 403)
            self.server.repositories[name] = wanted.get("private", wanted.get("visibility") == "private")
            self.answer({"url": f"http://127.0.0.1/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": "http://127.0.0.1/me/heads/commit/0", "commitOid": "0" * 40})
        else:
            self.answer({})

    def answer(self, value, status: int = 200, code: str = ""):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, header in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
            ("X-Error-Code", code),
        ):
            if header:
                self.send_header(name, header)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(backbones, tmp_path):
    backbone = backbones("llama")
    save_drafter(tmp_path / "heads", Medusa(backbone, heads=2), FixedTree.chain(2))
    return export(tmp_path / "heads", "tgi-medusa", tmp_path / "out", backbone).folder


def test_an_export_arrives_byte_for_byte_and_private(hub, exported, capfd):
    assert main([str(exported), "--repo", "me/heads"]) == 0
    assert hub.files == {file.name: file.read_bytes() for file in exported.iterdir()}
    assert hub.repositories == {"me/heads": True} and hub.tokens == {"Bearer hf_secret"}
    printed = capfd.readouterr()
    assert "-> " in printed.out and "hf_secret" not in printed.out + printed.err
    assert main([str(exported), "--repo", "me/heads"]) == 0, "again, into what is there"


def test_a_folder_of_this_machine_is_pointed_out(hub, exported, capsys):
    assert main([str(exported), "--repo", "me/heads", "--dry_run"]) == 0
    assert "this machine" not in capsys.readouterr().err
    config = exported / "config.json"
    config.write_text(json.dumps({"verifier": {"names": [1, str(exported)]}}))
    assert main([str(exported), "--repo", "me/heads", "--dry_run"]) == 0
    config.with_name("other.json").write_text("{")
    with pytest.raises(UserError, match=r"other.json' is damaged"):
        main([str(exported), "--repo", "me/heads", "--dry_run"])
    assert f"config.json names '{exported}', a folder of this machine" in capsys.readouterr().err


def test_public_only_if_said(hub, exported):
    assert main([str(exported), "--repo", "me/open", "--public"]) == 0
    assert hub.repositories == {"me/open": False}
    hub.files.clear()
    with pytest.raises(UserError, match="exists and is public: say --public"):
        main([str(exported), "--repo", "me/open"])
    assert not hub.files


def test_what_the_hub_refuses_is_one_line(hub, exported, monkeypatch):
    with pytest.raises(UserError, match="the Hub did not take them/heads"):
        main([str(exported), "--repo", "them/heads"])
    hub.shutdown()
    hub.server_close()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the Hub did not take me/heads"):
        main([str(exported), "--repo", "me/heads"])


def test_a_runs_heads_go_as_hf_and_nothing_else_of_the_run(hub, tmp_path):
    from mhc.backbone.model import Backbone

    run = tmp_path / "run"
    save_drafter(run, Medusa(Backbone.load("pocket"), heads=2), FixedTree.chain(2))
    (run / "best.ckpt").write_text("large")
    (run / "README.md").write_text("my notes")
    (run / "logs").mkdir()
    assert main([str(run), "--repo", "me/heads"]) == 0
    assert set(hub.files) == {"README.md", "drafter.json", "drafter.safetensors"}
    assert hub.files["README.md"].startswith(b"---\nlicense: apache-2.0\nlibrary_name: mhc")


@pytest.mark.parametrize("dry", [True, False])
def test_dry_without_a_token_or_when_asked(hub, exported, monkeypatch, capsys, dry):
    if not dry:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([str(exported), "--repo", "me/heads", *(["--dry_run"] if dry else [])]) == 0
    printed = capsys.readouterr().out
    assert (
        "dry run" in printed
        and "medusa_lm_head.safetensors" in printed
        and "private model repository me/heads" in printed
    )
    assert not hub.files and not hub.repositories and not hub.tokens


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        main([str(tmp_path / "nowhere"), "--repo", "me/heads"])
    with pytest.raises(UserError, match="neither an export"):
        main([str(tmp_path), "--repo", "me/heads"])
    with pytest.raises(UserError, match="no name that the Hub takes"):
        main([str(tmp_path), "--repo", "me/my heads"])
