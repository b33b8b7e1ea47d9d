"""A run for others: the card, the folder, and the way over the hub, by a stub on loopback."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers import fake_store as fake
from safetensors.torch import load_file

from bieff.apps.report.share import model_card, share_run
from bieff.apps.train import train_run
from bieff.cli import main
from bieff.features.errors import InputError
from bieff.train.evaluate.results import load_results
from bieff.train.runs.hub import FETCHED, fetch, parse_name
from bieff.train.runs.run import RECORD, load_model, open_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return fake.load_clip(tmp_path_factory.mktemp("clip") / "my clip")


@pytest.fixture(scope="module")
def trained(clip, tmp_path_factory):
    """A run with figures, its CLIP in a folder of this machine."""
    folder = tmp_path_factory.mktemp("trained")
    store = fake.write_store(folder / "fake", clip)
    short = ["epochs=1", "warmup_epochs=0", "batch_size=16", "temporal_layers=1"]
    run = folder / "runs" / "mine"
    train_run(
        features=store.path,
        out=run,
        frames=None,
        preset=None,
        config=None,
        overrides=short,
        device="cpu",
        dry_run=False,
        model=clip.name.model,
        command=["/home/somebody/bin/bieff", "train", "--features", str(store.path)],
    )
    asked = ["eval", str(run), "--device", "cpu", "--model", clip.name.model]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    return run


def test_a_folder_is_a_run_and_has_a_card(trained, clip, tmp_path):
    out = tmp_path / "shared"
    done = CliRunner().invoke(main, ["share", str(trained), "--to", str(out)])
    assert (done.exit_code, done.output) == (0, f"shared: {out}\n")
    names = {file.name for file in out.iterdir()}
    assert names >= {"README.md", "run.json", "last.safetensors", "results.json"}
    assert names <= {"README.md", "run.json", "last.safetensors", "best.safetensors"} | {
        "results.json"
    }
    opened = open_run(out)
    one, two = (load_model(run, clip).state_dict() for run in (opened, open_run(trained)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # no folder of this machine, nor what was typed
    said = "".join((out / name).read_text() for name in ("README.md", "run.json"))
    assert str(trained.parent.parent) not in said
    assert str(Path(clip.name.model.partition(":")[2]).parent) not in said
    assert "somebody" not in said
    assert opened.record["store"] == "features/fake"
    assert opened.clip.name.model == "local-dir:my clip"
    with pytest.raises(InputError, match="exists; remove it or choose another folder"):
        share_run(trained, str(out))


def test_the_card_is_one_that_the_hub_reads(trained, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    share_run(trained, str(tmp_path / "shared"))
    card = hub.ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.library_name == "bieff"
    assert card.data.pipeline_tag == "video-classification"
    results = load_results(trained / "results.json")
    figures = [round(value, 2) for r in results for value in (r.top1, r.top5)]
    assert [found.metric_value for found in card.data.eval_results] == figures
    assert card.data.eval_results[0].dataset_name == "fake, protocol closed"
    counted = open_run(trained).record["videos"]
    assert f"| data set | fake, {counted} videos |" in card.text
    for words in ("closed", "frozen CLIP", "tunable parameters", "peak memory", "temporal"):
        assert words in card.text, words


def test_words_of_a_run_are_words_in_the_card(trained):
    run = open_run(trained)
    run.record["data_set"] = "a|b\n<script> **x** [y](z) \x1b[31m"
    card = model_card(run, [], name="org/name")
    front, text = card.split("---\n\n", 1)
    assert "model-index" not in front
    assert "a\\|b\\\\n&lt;script&gt; \\*\\*x\\*\\* \\[y\\](z) \\\\x1b\\[31m" in text
    assert "None were measured yet." in text
    assert "bieff predict clip.mp4 --run hf-hub:org/name" in text


def test_a_run_that_started_from_another_says_so_without_its_folder(trained, tmp_path):
    record = json.loads((trained / RECORD).read_text())
    old = {"run": "old", "sha256": "0" * 64, "data_set": "k400", "store": "1", "shots": None}
    record["ancestors"] = [old | {"file": "/home/somebody/runs/old/last.safetensors"}]
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / RECORD).write_text(json.dumps(record))
    shared = open_run(Path(share_run(tmp_path / "run", str(tmp_path / "out"))))
    assert [one.file for one in shared.ancestors] == ["old/last.safetensors"]
    assert "| started after | k400 |" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_not_finished_is_not_shared(trained, tmp_path):
    (tmp_path / "run").mkdir()
    record = json.loads((trained / RECORD).read_text()) | {"finished": None}
    (tmp_path / "run" / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match="is not finished; go on with"):
        share_run(tmp_path / "run", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "../x", "a/..", "a/b@", "http://a/b"])
def test_a_name_that_is_none(name):
    with pytest.raises(InputError, match="expected hf-hub:ORG/NAME, got"):
        parse_name(f"hf-hub:{name}")
    assert parse_name("hf-hub:org/my.run-1@v2") == ("org/my.run-1", "v2")


# --- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP as one repository of small files takes."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/org/name/resolve/[^/]+/(.+)", self.path)
        if found is None:
            return self.answer({"id": "org/name", "sha": COMMIT, "siblings": []})
        if found[1] not in self.files:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": COMMIT}
            return self.answer({"error": "Entry not found"}, 404, **headers)
        content = self.files[found[1]]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        self.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = f"http://{self.headers['Host']}/org/name"
        if self.path == "/api/repos/create":
            return self.answer({"url": address, "name": "org/name", "id": "org/name"})
        if self.path == "/api/validate-yaml":  # as the hub looks at a card
            front = json.loads(body)["content"].split("---\n")[1]
            wrong = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no YAML"}]
            return self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in files
            ]
            return self.answer({"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.files[line["value"]["path"]] = content
        commit = {"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT}
        return self.answer({**commit, "hookOutput": "", "success": True})


@pytest.fixture
def hub(tmp_path):
    Hub.files, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def bieff(hub, folder, *arguments):
    """The command in a process, whose hub is that address."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": "hf_made_up",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "bieff.cli", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_over_the_hub_and_back(trained, clip, hub, tmp_path):
    """Shared by one process, evaluated by another that knows the name alone."""
    done = bieff(hub, tmp_path, "share", trained, "--to", "hf-hub:org/name")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"shared: {hub}/org/name\n"
    assert set(Hub.files) >= {"README.md", "run.json", "last.safetensors", "results.json"}
    assert Hub.files["last.safetensors"] == (trained / "last.safetensors").read_bytes()

    # a stranger's repository: what it says of paths is not obeyed, what else it holds not read
    record = json.loads(Hub.files["run.json"]) | {"store": "/etc", "data_set": "fake"}
    Hub.files["run.json"] = json.dumps(record).encode()
    Hub.files |= {"config.py": b"raise SystemExit", "last.pt": b"\x80\x04."}
    Hub.asked.clear()
    store = trained.parent.parent / "fake"
    asked = ("--model", clip.name.model, "--device", "cpu")
    done = bieff(hub, tmp_path, "eval", "hf-hub:org/name", *asked, "--features", store)
    assert done.returncode == 0, done.stderr
    files = {line.rpartition("/")[2] for line in Hub.asked if "/resolve/" in line}
    assert files <= {"run.json", "last.safetensors", "best.safetensors"}
    fetched = tmp_path / FETCHED / f"org--name-{COMMIT[:8]}"
    ours, theirs = (load_file(f / "last.safetensors") for f in (trained, fetched))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((fetched / RECORD).read_text())["store"] == "features/fake"
    again, first = (load_results(f / "results.json") for f in (fetched, trained))
    assert [r.top1 for r in again] == [r.top1 for r in first]

    # another CLIP than the one claimed, and a hub without that name
    other = fake.write_clip(tmp_path / "other", seed=1).model
    done = bieff(
        hub, tmp_path, "eval", "hf-hub:org/name", "--model", other, "--features", store
    )
    assert done.returncode == 1
    assert "fingerprint" in done.stderr
    Hub.files = {}
    done = bieff(hub, tmp_path, "eval", "hf-hub:org/none", "--features", store)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot fetch hf-hub:org/none: ")
    assert "Traceback" not in done.stderr


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cannot fetch hf-hub:org/name: .*check the name"):
        fetch("hf-hub:org/name", record=RECORD)
    assert not (tmp_path / "runs").exists()
