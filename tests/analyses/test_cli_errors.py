"""Bad input to the command line: what was given, what was expected, what to try, and nothing left behind.

Exit code 2 when the command line is wrong, 1 when the run fails; never a traceback.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from analyses.command_line.shell import FAILED, MISUSED
from tests.analyses.tiny_models import ROOT, interp

PROMPT = "When Mary and John went to the store, John gave a drink to"
SWAPPED = "When Mary and John went to the store, Mary gave a drink to"
LONGER = "When Mary and John went to the old store, Mary gave a drink to"
ANSWERS = ["--right", " Mary", "--wrong", " John"]
PAIR = ["--prompt", PROMPT, "--corrupted", SWAPPED, *ANSWERS]
LONG = " and".join([" Mary"] * 40)
IDS = ["--ids", "--prompt", "1 2 3", "--corrupted", "1 4 3"]


def check(arguments: list[str], code: int, *fragments: str) -> str:
    """Run in this process; the message must have all fragments and be the only thing that is said."""
    result = interp(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("error: ")
    for fragment in fragments:
        assert fragment in result.stderr
    return result.stderr


MISUSES = {
    "unknown command": (["ptch"], ["unknown command 'ptch'", "closest: 'patch'", "known: demo, report"]),
    "unknown option": (["patch", "--metrc", "prob"], ["'--metrc'", "'--metric'", "try: interp patch --help"]),
    "option without value": (["patch", "--model"], ["'--model' requires an argument"]),
    "site": (["patch", "--site", "resid_pree"], ["unknown site 'resid_pree'", "closest: 'resid_pre'"]),
    "task": (["patch", "--task", "indction"], ["unknown task 'indction'", "closest: 'induction'", "known: ioi"]),
    "metric": (["patch", "--metric", "logitdiff"], ["unknown metric 'logitdiff'", "closest: 'logit_diff'"]),
    "direction": (["patch", "--direction", "denose"], ["unknown direction 'denose'", "closest: 'denoise'"]),
    "axis": (["patch", "--by", "layer,hed"], ["unknown axis 'hed'", "closest: 'head'"]),
    "component": (["lens", "--of", "atn_out"], ["unknown component 'atn_out'", "closest: 'attn_out'"]),
    "part": (["attribute", "--by", "heads"], ["unknown part 'heads'", "closest: 'head'"]),
    "backend": (["lens", "--backend", "transformerlens"], ["unknown backend", "closest: 'transformer-lens'"]),
    "dtype": (["lens", "--dtype", "float23"], ["unknown dtype 'float23'", "closest: 'float32'"]),
    "device": (["lens", "--device", "cudaa"], ["unknown device 'cudaa'", "closest: 'cuda'", "expected cpu, cuda"]),
    "recipe": (["train", "induction-3l"], ["unknown recipe 'induction-3l'", "closest: 'induction-2l'"]),
    "no prompts": (["patch", "-n", "0"], ["'-n'", "0 is not in the range x>=1"]),
    "seed": (["patch", "--seed", "-1"], ["'--seed'", "-1 is not in the range x>=0"]),
    "temperature": (["generate", "--temperature", "-1"], ["'--temperature'", "x>=0"]),
    "top-p": (["generate", "--top-p", "2"], ["'--top-p'", "0<x<=1"]),
    "budget": (["patch", "--budget", "2 pounds"], ["'2 pounds' is no amount of memory", "such as 500MB or 2GB"]),
    "no budget": (["patch", "--budget", "0"], ["'0' is no amount of memory"]),
    "batch size": (["patch", "--batch-size", "4"], ["No such option", "--batch-size"]),
    "kept in another format": (["patch", "--resume", "s.csv"], ["ends in '.csv'", "expected .safetensors"]),
    "kept nowhere": (["patch", "--resume", "/nowhere/s.safetensors"], ["no folder '/nowhere'"]),
    "plan of nothing written": (["patch", "--plan", "--out", "a.csv"], ["--plan runs nothing", "no --out"]),
    "plan of nothing kept": (["patch", "--plan", "--resume", "a.safetensors"], ["--plan runs nothing", "no --resume"]),
    "half a pair": (["patch", "--prompt", "a"], ["1 --prompt, 0 --corrupted, 0 --right, 0 --wrong", "as many of each"]),
    "task and prompt": (["lens", "--task", "ioi", "--prompt", "a"], ["either --task or --prompt"]),
    "empty prompt": (["lens", "--prompt", ""], ["--prompt is empty", "expected at least one token"]),
    "empty prompts": (["patch", "--prompt", "", "--corrupted", "", *ANSWERS], ["--prompt is empty"]),
    "empty answer": (["patch", *PAIR[:4], "--right", "", "--wrong", "a"], ["--right is empty"]),
    "nothing to write on": (["generate", "--prompt", ""], ["--prompt is empty"]),
    "words as ids": (["lens", "--ids", "--prompt", "1 two"], ["token ids such as '3 1 2'", "given '1 two'"]),
    "endless id": (["lens", "--ids", "--prompt", "9" * 30], ["token ids such as '3 1 2'"]),
    "ids of nothing": (["lens", "--ids"], ["there is no --prompt"]),
    "answer to a component": (["lens", "--of", "attn_out", "--right", " a"], ["--right and --layer go with"]),
    "folder as output": (["lens", "--out", "."], ["ends in ''", ".html"]),
    "unknown kind of output": (["heads", "--out", "scores.png"], ["ends in '.png'", ".csv"]),
    "report in another format": (["demo", "--out", "report.pdf"], ["ends in '.pdf'", "expected .html"]),
    "no such folder": (
        ["demo", "--out", "/nowhere/r.html"],
        ["cannot write to '/nowhere/r.html'", "no folder '/nowhere'"],
    ),
    "folder that takes no file": (["heads", "--out", "/proc/scores.csv"], ["cannot write to '/proc/scores.csv'"]),
    "folder that takes no model": (["train", "induction-2l", "--out", "/proc/m"], ["cannot write to '/proc/m"]),
}


@pytest.mark.parametrize(("arguments", "fragments"), MISUSES.values(), ids=MISUSES)
def test_a_wrong_command_line_is_told_what_is_wrong(
    arguments: list[str], fragments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = check(arguments, MISUSED, *fragments)
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# What only the model or the machine can refuse; {town} is a small model, {bare} one without tokenizer.
FAILURES = {
    "no CUDA": (["lens", "--device", "cuda"], ["device 'cuda' is not there", "try 'cpu'"]),
    "no third GPU": (["lens", "--device", "cuda:99"], ["device 'cuda:99' is not there"]),
    "no such version": (["lens", "--revision", "step-3"], ["has no revision 'step-3'", "try without revision"]),
    "a site of other models": (["patch", "--site", "rot_q"], ["'tiny-town' has no 'rot_q'", "its sites: resid_pre"]),
    "no heads there": (["patch", "--by", "layer,head"], ["'resid_pre' has the axes batch pos d_model"]),
    "budget too small": (["patch", "--budget", "1KB"], ["a budget of 1 KiB is too small for one row", "at least"]),
    "prompt too long": (["lens", "--prompt", LONG], ["tokens, the context window 32", "shorten"]),
    "pair too long": (["patch", "--prompt", LONG, "--corrupted", LONG, *ANSWERS], ["context is 32", "shorten"]),
    "text too long to go on": (["generate", "--prompt", LONG], ["context window 32", "shorten"]),
    "no room to write": (["generate", "--prompt", PROMPT], ["15 tokens and 20 new ones", "try max_new_tokens=18"]),
    "two tokens": (["patch", *PAIR[:4], "--right", " Maximilian", "--wrong", " John"], ["7 tokens", "expected one"]),
    "answer of two tokens": (["lens", "--prompt", PROMPT, "--right", " Maximilian"], ["7 tokens", "expected one"]),
    "right and wrong": (["patch", *PAIR[:4], "--right", " Mary", "--wrong", " Mary"], ["both a right and a wrong"]),
    "id too large": (["lens", "--ids", "--prompt", "1 9999"], ["token ids run from 1 to 9999", "expected 0 to"]),
    "id below zero": (["lens", "--ids", "--prompt", "1 -2"], ["token ids run from -2 to 1", "expected 0 to"]),
    "no id": (["lens", "--ids", "--prompt", " "], ["at least one token"]),
    "pair of large ids": (["patch", *IDS, "--right", "9999", "--wrong", "1"], ["right has token id 9999", "0 to"]),
    "generated from large ids": (["generate", "--ids", "--prompt", "9999"], ["token ids run from 9999 to 9999"]),
    "answer id too large": (["lens", "--ids", "--prompt", "1", "--right", "9999"], ["'9999' is not one token id"]),
    "words in pieces": (["patch", "--task", "facts"], ["task 'facts' needs", "splits or lacks ' France'"]),
    "repeat too long": (["heads", "--length", "500"], ["needs a context of 1001", "this model has 32"]),
    "text without tokenizer": (["lens", "--prompt", "a", "--model", "{bare}"], ["has no tokenizer", "--ids"]),
    "task without tokenizer": (["patch", "--model", "{bare}"], ["'bare' has no tokenizer"]),
}


@pytest.mark.parametrize(("arguments", "fragments"), FAILURES.values(), ids=FAILURES)
def test_what_a_model_cannot_do_is_told(
    arguments: list[str],
    fragments: list[str],
    town: Path,
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--device" in arguments and torch.cuda.device_count() > 99:
        pytest.skip("this machine has the devices")
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    given = [argument.format(bare=bare) if argument == "{bare}" else argument for argument in arguments]
    output = [] if arguments[0] == "generate" else ["--out", "result.csv"]
    message = check([given[0], "--model", str(town), *given[1:], *output], FAILED, *fragments)
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_models_of_different_vocabularies_are_not_compared(town: Path, bare: Path) -> None:
    check(["compare", str(town), str(bare)], FAILED, "vocabularies of", "expected the same")


def test_prompts_of_unequal_length_are_both_shown_in_tokens(town: Path) -> None:
    pair = ["--prompt", PROMPT, "--corrupted", LONGER, *ANSWERS]
    message = check(["patch", "--model", str(town), *pair], FAILED, "clean has 15 tokens, corrupted 1", "aligned")
    assert [line.split()[0] for line in message.splitlines()] == ["error:", "clean:", "corrupted:"]
    assert "' Mary' ' gave'" in message


def test_a_layer_that_the_model_lacks_is_misuse(town: Path) -> None:
    check(["lens", "--model", str(town), "--layer", "7"], MISUSED, "--layer 7", "has layers 0 to 1")


@pytest.mark.parametrize("pattern", ["blocks.0.atn.hook_z", "blocks.7.*"])
def test_an_unknown_hook_is_misuse_with_near_misses(town: Path, pattern: str) -> None:
    found = check(["hooks", "--model", str(town), pattern], MISUSED, f"no hook named {pattern!r}", "list them:")
    assert ("closest: 'blocks.0.attn.hook_z'" in found) == ("atn" in pattern)


@pytest.mark.parametrize("name", ["induction-3l", "./nowhere", "/nowhere/at/all", "some/hub-id", "a b", " "])
def test_an_unknown_model_is_misuse_and_the_zoo_is_named(name: str, tmp_path: Path) -> None:
    from models.pretrained import zoo_names

    message = check(["lens", "--model", name, "--out", str(tmp_path / "x.csv")], MISUSED, repr(name), "one of the zoo")
    assert all(known in message for known in zoo_names())
    assert "closest: 'induction-2l'" in message or name != "induction-3l" or "induction-2l" not in zoo_names()


def change_config(**entries: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def change_weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("exploded", "w")


def pickle_as(name: str) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(pickle.dumps({"embed.W_E": Bomb()}))

    return put


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return put


DAMAGES = {
    "truncated": (change_weights(lambda data: data[: len(data) // 2]), ["truncated or corrupt", "get the file again"]),
    "cut off in its header": (change_weights(lambda data: data[:5]), ["truncated or corrupt"]),
    "empty": (change_weights(lambda data: b""), ["truncated or corrupt"]),
    "corrupt": (change_weights(lambda data: b"\xff" * 64 + data[64:]), ["truncated or corrupt"]),
    "missing": (remove("model.safetensors"), ["no weights in", "expected model.safetensors"]),
    "wider in the config": (
        change_config(d_model=32),
        ["config.json contradicts the weights", "'embed.W_E' has shape"],
    ),
    "deeper in the config": (change_config(n_layers=3), ["does not fit its config.json", "missing 'blocks.2."]),
    "contradictory config": (
        change_config(n_key_value_heads=3),
        ["not a multiple of n_key_value_heads=3"],
    ),
    "wrong type in the config": (change_config(n_layers="two"), ["n_layers='two'", "positive integer"]),
    "wrong number in the config": (change_config(eps="small"), ["eps='small'", "expected a number"]),
    "unknown entry in the config": (change_config(d_modle=16), ["unknown config entry 'd_modle'", "'d_model'"]),
    "unknown dtype in the config": (change_config(dtype="float23"), ["unknown dtype 'float23'"]),
    "config of tomorrow": (change_config(format_version=99), ["format_version=99", "update the lab"]),
    "half a config": (write("config.json", b'{"n_layers": '), ["config.json as JSON"]),
    "config of bytes": (write("config.json", b"\xff\xfe"), ["config.json as JSON"]),
    "no config": (remove("config.json"), ["no config.json in"]),
    "broken tokenizer": (write("tokenizer.json", b"{"), ["tokenizer.json as a tokenizer"]),
    "pickle": (pickle_as("model.pt"), ["Found model.pt", "a pickle runs code", "expected safetensors"]),
    "pickle as bin": (pickle_as("pytorch_model.bin"), ["is a pickle", "expected safetensors"]),
    "pickle in disguise": (pickle_as("model.safetensors"), ["is a pickle", "expected safetensors"]),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("damage", "fragments"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_refused_and_nothing_is_run_or_written(
    damage: Callable[[Path], None], fragments: list[str], town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, work = tmp_path / "damaged", tmp_path / "work"
    shutil.copytree(town, directory)
    damage(directory)
    work.mkdir()
    monkeypatch.chdir(work)
    message = check(["heads", "--model", str(directory), "--out", "scores.json"], FAILED, *fragments)
    assert message.count("\n") == 1
    assert list(work.iterdir()) == []


def test_a_pickle_named_as_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(pickle.dumps(Bomb()))
    check(["lens", "--model", "model.pt"], FAILED, "'model.pt' is a pickle", "expected safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (["nothing"], ["cannot change 'nothing'", "model.n_layers=1"]),
        (["training.stepz=3"], ["unknown entry of [training] 'stepz'", "closest: 'steps'"]),
        (["training.steps=many"], ["steps='many'"]),
        (["model.n_layers=-1"], ["n_layers=-1", "positive integer"]),
        (["data.kind=towns"], ["unknown kind of data 'towns'", "closest: 'town'"]),
    ],
)
def test_a_bad_change_of_a_recipe_trains_nothing(
    changes: list[str], fragments: list[str], recipe: Path, tmp_path: Path
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    check(["train", str(recipe), "--out", str(tmp_path / "made"), *options], FAILED, *fragments)
    assert [path.name for path in tmp_path.iterdir()] == [recipe.name]


def test_training_does_not_touch_a_folder_that_holds_something_else(recipe: Path, town: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in town.iterdir())
    check(["train", str(recipe), "--out", str(town)], FAILED, "is not the folder of a training run", "empty folder")
    assert sorted(path.name for path in town.iterdir()) == before


def test_an_error_that_nobody_foresaw_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must show its traceback: only errors that are meant for users become messages."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("models.load", broken)
    assert isinstance(interp("lens").exception, ZeroDivisionError)


# -- real processes ---------------------------------------------------------------------------------------------------

# The command of the arguments, with something put in its way: {trap} runs first.
TRAPPED = "import sys, time\n{trap}\nfrom analyses.cli import main\nmain(sys.argv[1:])"
SLOW_SWEEP = """
import interp.sweep.running
def wait(*_):
    print("sweeping", file=sys.stderr, flush=True)
    time.sleep(600)
interp.sweep.running.run_climb = wait
"""
SLOW_WRITING = """
import os
def wait(*_):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(600)
os.replace = wait
"""


def start(arguments: list[str], trap: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, with as many threads as this one, as their number decides the rounding."""
    command = [sys.executable, "-c", TRAPPED.format(trap=trap), *arguments]
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Ctrl-C, and how the process ends."""
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("command", "trap", "word"),
    [
        (["patch", "-n", "4", "--out", "{out}/effects.csv"], SLOW_SWEEP, "sweeping"),
        (["report", "-n", "4", "--out", "{out}/report.html"], SLOW_SWEEP, "sweeping"),
        (["heads", "--out", "{out}/scores.html"], SLOW_WRITING, "writing"),
        (["heads", "--out", "{out}/scores.safetensors"], SLOW_WRITING, "writing"),
    ],
)
def test_an_interrupted_command_leaves_no_file_and_no_traceback(
    command: list[str], trap: str, word: str, town: Path, tmp_path: Path
) -> None:
    process = start([*(part.format(out=tmp_path) for part in command), "--model", str(town)], trap)
    assert process.stderr is not None
    assert process.stderr.readline().strip() == word
    code, out, err = interrupt(process)
    assert (code, out) == (FAILED, "")
    assert err.strip() == "error: interrupted; nothing was left half-written."
    assert list(tmp_path.iterdir()) == []


def test_interrupted_training_goes_on_with_the_same_command(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    process = start(["train", str(recipe), "--out", str(out)])
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoints/*.resume.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    code, _, err = interrupt(process)
    assert code == FAILED
    assert f"the same command goes on from the last checkpoint in {out}" in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.part"))
    [checkpoint] = out.glob("checkpoints/*.resume.pt")
    done = int(checkpoint.name.removeprefix("step_").partition(".")[0])
    again = start(["train", str(recipe), "--out", str(out)])
    while list(out.glob("checkpoints/*.resume.pt")) == [checkpoint] and again.poll() is None:
        time.sleep(0.05)
    code, _, err = interrupt(again)
    assert code == FAILED, err
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] > done


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_error(town: Path, options: list[str]) -> None:
    process = start(["hooks", "--model", str(town), *options])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=120)


def test_a_terminal_without_unicode_gets_escapes(town: Path) -> None:
    command = [sys.executable, "-m", "analyses.cli", "lens", "--model", str(town)]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert rb"\xb7to" in found.stdout
