"""Recipes: what they look like, and that whatever is not understood is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.errors import RecipeError
from headrace_workers.compression.recipe import Quantize, Recipe, parse_recipe, read_recipe, ready_recipes

# -- what they are for --------------------------------------------------------------------------------------


def test_a_recipe_is_stages_and_gates(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("""
        seed: 7
        stages:
          - {kind: prune_structured, target: ffn, ratio: 0.25}
          - {kind: recover, training: {steps: 100}}
          - {kind: quantize}
        gates: {max_metric_drop: 0.02, max_size_ratio: 0.3}
    """)

    recipe = read_recipe(file)

    assert [stage.kind for stage in recipe.stages] == ["prune_structured", "recover", "quantize"]
    assert recipe.seed == 7
    assert recipe.gates.max_size_ratio == 0.3
    assert recipe.gates.min_speedup is None


def test_whoever_says_nothing_gets_int8() -> None:
    recipe = parse_recipe({"stages": [{"kind": "quantize"}]})

    stage = recipe.stages[0]
    assert isinstance(stage, Quantize)
    assert (stage.weights.bits, stage.weights.activations.kind, stage.embeddings) == (8, "dynamic_token", "int8")


@pytest.mark.parametrize("name", ["int8", "small", "smallest", "gpu"])
def test_ready_recipes_are_read_by_name(name: str) -> None:
    recipe = read_recipe(name)

    assert recipe.description
    assert recipe.gates.max_metric_drop is not None
    assert recipe.gates.max_size_ratio is not None


def test_a_draft_is_asked_only_to_be_small() -> None:
    """Whether its guesses pay is measured where it guesses."""
    asked = read_recipe("draft").gates.model_dump(exclude_none=True)

    assert asked == {"max_size_ratio": 0.5}


def test_a_recipe_survives_json() -> None:
    for name in ready_recipes():
        recipe = read_recipe(name)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "place", "word"),
    [
        ([], "stages", "at least 1"),
        ([{"kind": "shrink"}], "stages.0", "distill"),
        ([{"kind": "quantize", "bitts": 4}], "stages.0.quantize.bitts", "not permitted"),
        ([{"kind": "quantize", "weights": {"bits": 9}}], "stages.0.quantize.weights.bits", "2, 3"),
        ([{"kind": "quantize", "weights": {"bits": 16}}], "stages.0.quantize.weights", "fp16 or bf16"),
        ([{"kind": "quantize", "smooth": float("nan")}], "stages.0.quantize.smooth", ""),
        ([{"kind": "prune", "amount": 1.5}], "stages.0.prune.amount", "less than 1"),
        ([{"kind": "prune"}], "stages.0.prune", "exactly one"),
        ([{"kind": "prune", "pattern": "4:2"}], "stages.0.prune", "4:2"),
        ([{"kind": "prune_structured", "target": "ffn"}], "stages.0.prune_structured", "exactly one of ratio"),
        (
            [{"kind": "prune_structured", "target": "ffn", "ratio": 0.5, "threshold": 0.1}],
            "stages.0.prune_structured",
            "exactly one",
        ),
        ([{"kind": "distill", "student": {"model": "x", "layers": 2}}], "stages.0.distill.student", "layers"),
        (
            [{"kind": "quantize", "weights": {"bits": 4, "activations": {"kind": "static"}}}],
            "stages.0.quantize.weights",
            "static",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(stages: list[dict[str, Any]], place: str, word: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_recipe({"stages": stages})

    assert f"{place}: " in str(refused.value)
    assert word in str(refused.value)


@pytest.mark.parametrize(
    ("kinds", "word"),
    [
        (["quantize", "recover"], "quantize comes last"),
        (["quantize", "quantize"], "quantize comes last"),
        (["recover", "distill"], "distill comes first"),
        (["prune", "prune_structured"], "prune_structured comes before prune"),
        (["recover"], "recover comes after"),
    ],
)
def test_an_order_in_which_one_undoes_another(kinds: list[str], word: str) -> None:
    more: dict[str, dict[str, Any]] = {"prune": {"amount": 0.5}, "prune_structured": {"target": "ffn", "ratio": 0.5}}
    with pytest.raises(RecipeError, match=word):
        parse_recipe({"stages": [{"kind": kind, **more.get(kind, {})} for kind in kinds]})


@pytest.mark.parametrize("content", [b"stages: [", b"\xff\xfe", b"- 1", b"null", b"[" * 3000])
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)

    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        read_recipe(file)


def test_yaml_that_would_make_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("stages: !!python/object/apply:os.system ['true']")

    with pytest.raises(RecipeError, match="not YAML"):
        read_recipe(file)


def test_a_file_too_large_to_be_one(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"#" * (1 << 20) + b"\n")

    with pytest.raises(RecipeError, match="larger than a recipe"):
        read_recipe(file)


def test_no_such_file_and_no_such_name() -> None:
    with pytest.raises(RecipeError, match="gpu, int8, small, smallest"):
        read_recipe("tiny")
