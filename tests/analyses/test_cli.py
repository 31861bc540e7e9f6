"""The command line: what commands print and write, and what they cost to start."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from analyses import activation_patching, head_attribution, head_scores, logit_lens
from analyses.cli import main
from analyses.patching import PatchingResult
from interp import Result as LabResult
from interp import tasks
from models import load
from tests.analyses.tiny_models import ROOT, interp

COMMANDS = "demo report lens patch trace attribute heads embeddings steer sampling compare".split()
COMMANDS += "models hooks generate train".split()


def document(*arguments: str | Path) -> dict:
    """What a command prints with --json, which must be one JSON document and nothing else."""
    result = interp(*arguments, "--json")
    assert result.exit_code == 0, result.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(result.stdout, parse_constant=refuse)


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_help_lists_every_command_in_order() -> None:
    text = interp("--help").stdout
    places = [text.index(f"\n  {command} ") for command in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_all_of_its_options(command: str) -> None:
    text = interp(command, "--help").stdout
    assert len(text.splitlines()) > 5
    assert "--json" in text
    for parameter in main.commands[command].params:
        assert parameter.param_type_name == "argument" or parameter.help or parameter.show_default, parameter.name


@pytest.mark.parametrize("arguments", [["--help"], ["patch", "--help"], ["demo", "--help"], ["train", "--help"]])
def test_help_imports_neither_torch_nor_anything_else_that_is_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "analyses.cli", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "transformers", "transformer_lens", "plotly", "pandas", "rich", "models"}


def test_the_packages_import_without_the_heavy_libraries() -> None:
    code = "import sys, interp, models, analyses; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(found.stdout.split()) & {"transformer_lens", "circuitsvis", "plotly", "transformers", "torch"}


def test_patch_prints_the_numbers_of_activation_patching(town: Path) -> None:
    model = load(town)
    expected = activation_patching(model, tasks.ioi(model, n=4, seed=3), "z", "prob", "noise")
    found = document("patch", "--model", town, "--task", "ioi", "-n", 4, "--seed", 3, "--site", "z", "--metric", "prob",
                     "--direction", "noise")  # fmt: skip
    # Printed in full precision, computed by the same code on the same machine.
    assert np.array_equal(np.array(found["values"]), expected.values)
    assert found["axes"]["values"] == ["layer", "head"]
    assert (found["provenance"]["seed"], found["provenance"]["settings"]["task"]) == (3, "ioi")


def test_patch_shows_both_baselines_and_a_row_for_each_layer(town: Path) -> None:
    shown = lines(interp("patch", "--model", town, "-n", 2, "--site", "z", "--top", 2))
    assert shown[0].startswith("logit_diff: clean ")
    assert shown[2].split() == ["layer", "\\", "head", "0", "1", "2", "3"]
    assert [row.split()[0] for row in shown[3:5]] == ["0", "1"]
    assert shown[5].startswith("furthest from the unpatched run")
    assert len(shown) == 8


def test_attribute_says_that_its_parts_sum_to_the_whole(town: Path) -> None:
    model = load(town)
    expected = head_attribution(model, tasks.ioi(model, n=4))
    found = document("attribute", "--model", town, "-n", 4)
    assert np.array_equal(np.array(found["values"]), expected.values)
    shown = lines(interp("attribute", "--model", town, "-n", 4))[0]
    whole, parts = shown.removeprefix("logit difference ").split(" (")[0], shown.rpartition(" ")[2]
    assert whole == parts


@pytest.mark.parametrize(("by", "axes"), [("source", ["layer", "head", "pos"]), ("neuron", ["layer", "neuron"])])
def test_attribute_goes_into_sources_and_neurons(town: Path, by: str, axes: list[str]) -> None:
    assert document("attribute", "--model", town, "-n", 2, "--by", by)["axes"]["values"] == axes
    assert "furthest from zero" in interp("attribute", "--model", town, "-n", 2, "--by", by).stdout


def test_lens_gives_the_likeliest_tokens_and_follows_the_answer(town: Path) -> None:
    model, prompt = load(town), "When Mary and John went to the store, John gave a drink to"
    expected = logit_lens(model, prompt)
    token = model.to_single_token(" Mary")
    found = document("lens", "--model", town, "--prompt", prompt, "--right", " Mary", "--top", 3)
    assert "logits" not in found
    assert np.array_equal(np.array(found["top"]["ids"]), expected.top_tokens(3))
    assert found["answer"]["ranks"] == expected.rank(token).tolist()
    shown = lines(interp("lens", "--model", town, "--prompt", prompt, "--right", " Mary"))
    assert [row.split()[0] for row in shown[2:]] == ["embed", "0", "1"]
    by_position = lines(interp("lens", "--model", town, "--prompt", prompt, "--layer", 1))
    assert len(by_position) == 2 + expected.logits.shape[1]


def test_lens_of_a_component_names_the_heads(town: Path) -> None:
    shown = lines(interp("lens", "--model", town, "--of", "result"))
    assert [row.split()[0] for row in shown[2:]] == [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    assert len(document("lens", "--model", town, "--of", "mlp_out")["top"]["ids"]) == 2


def test_token_ids_take_the_place_of_text_in_a_model_without_tokenizer(bare: Path) -> None:
    found = document("lens", "--model", bare, "--ids", "--prompt", "3 1 2", "--right", "4")
    assert found["tokens"] == [3, 1, 2]
    pairs = ["--prompt", "3 1 2", "--corrupted", "3 5 2", "--right", "4 6", "--wrong", "7"]
    assert document("patch", "--model", bare, "--ids", *pairs)["provenance"]["prompts"]["right"] == [[4, 6]]
    assert document("attribute", "--model", bare, "--task", "induction")["kind"] == "AttributionResult"
    assert document("generate", "--model", bare, "--ids", "--prompt", "3 1", "--max-new-tokens", 3)["text"].startswith(
        "3 1 "
    )


def test_several_pairs_of_prompts_come_from_repeated_options(town: Path) -> None:
    pairs = []
    for one, other in (("Mary", "John"), ("Anna", "Tom")):
        pairs += ["--prompt", f"When {one} and {other} went to the park, {other} gave a ring to"]
        pairs += ["--corrupted", f"When {one} and {other} went to the park, {one} gave a ring to"]
        pairs += ["--right", f" {one}", "--wrong", f" {other}"]
    found = document("patch", "--model", town, *pairs)
    assert found["provenance"]["prompts"]["wrong"] == [" John", " Tom"]
    assert "seed" not in found["provenance"]


def test_heads_ranks_heads_in_three_roles(town: Path) -> None:
    found = document("heads", "--model", town, "-n", 4, "--seed", 1)
    assert np.array_equal(np.array(found["values"]), head_scores(load(town), n=4, seed=1).values)
    shown = interp("heads", "--model", town, "-n", 4, "--top", 1).stdout
    assert all(role in shown for role in ("previous", "duplicate", "induction"))


def test_a_model_does_not_differ_from_itself(town: Path) -> None:
    found = document("compare", town, town, "--prompt", "When Mary and John")
    assert max(found["relative"]) == 0
    assert "no hook point differs" in interp("compare", town, town).stdout


def test_hooks_lists_every_point_with_its_shape(town: Path) -> None:
    found = {row["name"]: row for row in document("hooks", "--model", town)["hooks"]}
    model = load(town)
    assert list(found) == list(model.hook_dict)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
    free = {"batch": 1, "pos": 5, "q_pos": 5, "k_pos": 5}
    assert set(cache) == set(found)
    for name, row in found.items():
        assert [free.get(size, size) for size in row["shape"]] == list(cache[name].shape), name
    assert found["blocks.0.attn.hook_result"]["on_demand"]
    assert not found["blocks.0.attn.hook_z"]["on_demand"]


def test_hooks_are_chosen_by_patterns(town: Path) -> None:
    shown = lines(interp("hooks", "--model", town, "*.hook_z", "hook_embed"))
    assert [row.split()[0] for row in shown[1:]] == ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]


def test_models_lists_the_zoo_and_says_how_to_load_others() -> None:
    from models.pretrained import zoo_names

    found = {entry["name"]: entry for entry in document("models")["models"]}
    assert set(found) == set(zoo_names())
    assert "--backend transformer-lens" in interp("models").stdout
    for name, entry in found.items():
        assert entry["parameters"] == sum(p.numel() for p in load(name).parameters())


def test_generate_is_the_same_for_the_same_seed(town: Path) -> None:
    prompt = "When Mary and John"
    one, again, other = (
        document("generate", "--model", town, "--prompt", prompt, "--max-new-tokens", 12, "--seed", seed)
        for seed in (1, 1, 2)
    )
    assert one["text"].startswith(prompt)
    assert one["text"] == again["text"] != other["text"]


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    from analyses.command_line.tables import safe

    assert safe("a\x1b[31m\nb\t\u202e") == "a\\x1b[31m\nb\t\\u202e"


@pytest.mark.parametrize("suffix", [".html", ".safetensors", ".csv", ".json"])
def test_out_writes_what_its_suffix_says(town: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"result{suffix}"
    result = interp("heads", "--model", town, "-n", 2, "--out", path)
    assert result.exit_code == 0
    assert result.stderr == f"wrote {path}\n"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    expected = head_scores(load(town), n=2).values
    if suffix == ".html":
        assert "plotly" in path.read_text()
    elif suffix == ".safetensors":
        assert np.array_equal(LabResult.load(path).values, expected)  # type: ignore[attr-defined]
    elif suffix == ".json":
        assert np.array_equal(np.array(json.loads(path.read_text())["values"]), expected)
    else:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        # CSV holds the shortest decimals that read back to the same float32.
        assert np.array_equal(np.array([float(row["values"]) for row in rows], np.float32), expected.ravel())


def test_report_writes_one_page_and_tells_what_it_found(town: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    shown = lines(interp("report", "--model", town, "-n", 2, "--out", path))
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text().startswith("<!doctype html>")
    assert shown[0].startswith("tiny-town, 2 pairs: logit_diff ")
    assert [line.partition(":")[0] for line in shown[1:]] == ["answer", "patching", "attribution", "roles", "report"]


def test_demo_reports_on_the_shipped_model(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from analyses import cli

    monkeypatch.setattr(cli, "DEFAULT_MODEL", str(town))
    monkeypatch.chdir(tmp_path)
    found = document("demo", "-n", 2)
    assert found["report"] == "report.html"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert set(found["patching"]) == {"resid_pre", "attn_out", "mlp_out", "z"}


def test_train_replays_a_recipe_and_its_model_loads(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    found = document("train", recipe, "--out", out, "--set", "training.steps=3", "--seed", 5)
    assert found["log"][-1]["step"] == 3
    assert load(out).cfg.seed == 5
    shown = lines(interp("train", recipe, "--out", out, "--set", "training.steps=3", "--seed", 5))
    assert shown[0] == f"trained for 3 steps; use it with --model {out}"


def test_dtype_and_backend_reach_the_model(town: Path) -> None:
    found = document("lens", "--model", town, "--dtype", "bfloat16")
    assert found["provenance"]["dtype"] == "bfloat16"


def test_a_warning_is_one_line_on_stderr(town: Path) -> None:
    same = "When Mary and John went to the store, John gave a drink to"
    pairs = ["--prompt", same, "--corrupted", same, "--right", " Mary", "--wrong", " John"]
    result = interp("patch", "--model", town, *pairs)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: the clean baseline")
    assert len(result.stderr.splitlines()) == 1


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("interp ")


def test_a_table_too_wide_for_the_terminal_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    from analyses.command_line import tables

    for width, heading in ((200, "layer \\ pos"), (40, "pos \\ layer"), (5, None)):
        monkeypatch.setattr(tables, "_console", lambda width=width: Console(width=width, file=io.StringIO()))
        corners = [str(table.columns[0].header) for table in tables.grid(_effects(20))]  # type: ignore[union-attr]
        assert corners == ([] if heading is None else [heading])


def _effects(n: int) -> PatchingResult:
    ones = np.ones(2)
    values = np.ones((3, n))
    return PatchingResult(
        values,
        values[..., None].repeat(2, -1),
        ones,
        ones,
        "z",
        "prob",
        "noise",
        True,
        "resumed",
        axes=("layer", "pos"),
    )
