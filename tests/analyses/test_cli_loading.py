"""Models that the command line cannot load as asked: hub ids, in real processes against a real server; other families.

The server answers as the Hugging Face hub does: status codes and X-Error-Code headers are those that its client reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from analyses.command_line.shell import DONE, FAILED, MISUSED
from tests.analyses.tiny_models import ROOT, interp
from tests.checkpoints import saved, tiny_hugging_face_model
from tests.models.tiny_checkpoints import bloom, change_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LENS = ["--ids", "--prompt", "1 2 3"]


class Hub(BaseHTTPRequestHandler):
    """Repositories by a word in their name: nobody, broken, gated, forbidden; all others hold `files`."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if "nobody" in path:
            return self.say(401, "RepoNotFound")
        if "broken" in path:
            return self.say(500)
        if "revision/v9" in path:
            return self.say(404, "RevisionNotFound")
        if "/resolve/" in path:
            return self.file(path)
        if "/tree/" in path:
            sizes = {name: len(content) for name, content in self.files.items()}
            return self.send([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()])
        return self.send({"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})

    def file(self, path: str) -> None:
        if "gated" in path:
            return self.say(401, "GatedRepo")
        if "forbidden" in path:
            return self.say(403)
        content = self.files.get(path.rpartition("/")[2])
        if content is None:
            return self.say(404, "EntryNotFound")
        self.send(content, **{"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def say(self, status: int, code: str | None = None) -> None:
        self.send(b"", status, **({"X-Error-Code": code} if code else {}))

    def send(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a hub; every repository on it is the same tiny model."""
    directory = saved("llama", tmp_path_factory.mktemp("llama"))
    Hub.files = {path.name: path.read_bytes() for path in directory.iterdir()}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Loads what it is given, one after the other, and prints the error of each.
LOAD_ALL = """
import json, sys
from interp.errors import LabError
from models import load

for name, revision in json.loads(sys.argv[1]):
    try:
        load(name, revision=revision)
    except LabError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def run(arguments: list[str], home: Path, endpoint: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    """Python in a process whose hub is `endpoint` and whose downloads go to `home`."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def lens(model: str, home: Path, endpoint: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    return run(["-m", "analyses.cli", "lens", "--model", model, *LENS], home, endpoint, offline)


REFUSALS: dict[str, tuple[str | None, str, list[str]]] = {  # name: revision, error, what it says
    "meta/gated": (None, "LabError", ["is gated", "/meta/gated", "hf auth login"]),
    "some/forbidden": (None, "LabError", ["status 403", "hf auth login"]),
    "some/model": ("v9", "LabError", ["no revision 'v9'", "try without revision"]),
    "nobody/nothing": (None, "UnknownModelError", ["no such repository", "check the spelling", "one of the zoo: "]),
    "some/broken": (None, "LabError", ["status 500", "try again later"]),
    "not an/id": (None, "UnknownModelError", ["cannot be an id", "owner/name"]),
}


def test_a_hub_id_that_gives_no_model_is_explained(hub: str, tmp_path: Path) -> None:
    wanted = json.dumps([(name, revision) for name, (revision, _, _) in REFUSALS.items()])
    found = run(["-c", LOAD_ALL, wanted], tmp_path, hub)
    assert found.returncode == DONE, found.stderr
    told = [json.loads(line) for line in found.stdout.splitlines()]
    for (name, (_, kind, said)), (error, message) in zip(REFUSALS.items(), told, strict=True):
        assert (error, repr(name) in message) == (kind, True)
        for fragment in said:
            assert fragment in message


@pytest.mark.parametrize(("name", "code"), [("meta/gated", FAILED), ("nobody/nothing", MISUSED)])
def test_the_command_line_says_it_in_one_line(name: str, code: int, hub: str, tmp_path: Path) -> None:
    found = lens(name, tmp_path, hub)
    assert (found.returncode, found.stdout) == (code, ""), found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    for fragment in (repr(name), *REFUSALS[name][2]):
        assert fragment in found.stderr


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    found = lens("some/model", tmp_path, "http://127.0.0.1:9")
    assert (found.returncode, found.stdout) == (MISUSED, ""), found.stderr
    for fragment in ("no model 'some/model'", "http://127.0.0.1:9", "check the connection", "one of the zoo"):
        assert fragment in found.stderr


def test_what_was_downloaded_once_loads_offline_and_nothing_else_does(hub: str, tmp_path: Path) -> None:
    online = lens("some/model", tmp_path, hub)
    assert online.returncode == DONE, online.stderr
    wanted = json.dumps([("some/model", None), ("some/other", None)])
    offline = run(["-c", LOAD_ALL, wanted], tmp_path, hub, offline="1")
    assert offline.returncode == DONE, offline.stderr
    [(error, message)] = [json.loads(line) for line in offline.stdout.splitlines()]
    assert error == "UnknownModelError"
    assert "no model 'some/other'" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_another_architecture_goes_to_transformerlens_and_one_line_says_so(tmp_path: Path) -> None:
    result = interp("lens", "--model", str(bloom(tmp_path)), *LENS)
    assert result.exit_code == DONE, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "TransformerLens" in line]
    assert line.startswith("warning: config.json has model_type='bloom'")
    assert result.stdout


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, ["--backend", "native"], ["model_type='bloom'", "transformer-lens"]),
        ({"model_type": "lama"}, [], ["closest: 'llama'", "Nor is there a way through TransformerLens"]),
        ({"architectures": ["BloomForSequenceClassification"]}, [], ["does not predict the next token"]),
        ({"model_type": None}, [], ["model_type=None", "such as 'llama'"]),
    ],
)
def test_an_architecture_that_nothing_loads_is_told(
    changes: dict[str, object], options: list[str], said: list[str], tmp_path: Path
) -> None:
    result = interp("lens", "--model", str(bloom(tmp_path, **changes)), *LENS, *options)
    assert (result.exit_code, result.stdout) == (FAILED, ""), result.stderr
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    for fragment in said:
        assert fragment in result.stderr


def remove_shard(directory: Path) -> None:
    next(iter(sorted(directory.glob("model-*.safetensors")))).unlink()


def cut_shard(directory: Path) -> None:
    path = max(directory.glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])


def config_with(**entries: object) -> Callable[[Path], None]:
    return lambda directory: change_config(directory, **entries)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_shard, ["names 'model-00001-of-", "which is not there"]),
        (cut_shard, ["truncated or corrupt", "get the file again"]),
        (config_with(hidden_size=48), ["'model.embed_tokens.weight' has shape [61, 32]", "[61, 48]"]),
        (config_with(num_hidden_layers=3), ["missing 'model.layers.2.input_layernorm.weight'", "and 5 more"]),
        (config_with(num_hidden_layers=1), ["not expected 'model.layers.1.", "and 5 more"]),
        (config_with(num_attention_heads=5), ["n_heads=5"]),
        (config_with(num_hidden_layers=10**12), ["1000000000000 layers"]),
        (config_with(intermediate_size="wide"), ["d_mlp='wide'"]),
        (config_with(vocab_size=-1), ["d_vocab=-1"]),
    ],
)
def test_a_damaged_sharded_checkpoint_is_told_without_a_traceback(
    damage: Callable[[Path], None], said: list[str], tmp_path: Path
) -> None:
    tiny_hugging_face_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    damage(tmp_path)
    result = interp("lens", "--model", str(tmp_path), *LENS)
    assert (result.exit_code, result.stdout) == (FAILED, ""), result.stderr
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1
    for fragment in said:
        assert fragment in result.stderr
