"""Pooling as a model's own sentence-transformers files say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace.errors import ModelLoadError
from headrace_workers.models.pooling import Pooling, read_pooling
from headrace_workers.models.source import ModelSource

TOKENS = np.array([[1, -4], [3, 2], [5, 0], [7, 7]], np.float32)
STARTS = np.array([0, 3, 4], np.int32)


def source(folder: Path, *, modules: Any = None, files: dict[str, Any] | None = None) -> ModelSource:
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return ModelSource("the model", folder, None)


def module(idx: int, kind: str, path: str = "") -> dict[str, Any]:
    return {"idx": idx, "name": str(idx), "path": path, "type": kind}


OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules.pooling."


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", [1, -4]),
        ("lasttoken", [5, 0]),
        ("max", [5, 2]),
        ("mean", [3, -2 / 3]),
        ("mean_sqrt_len_tokens", [9 / 3**0.5, -2 / 3**0.5]),
    ],
)
def test_each_way_of_pooling(mode: str, expected: list[float]) -> None:
    vectors = Pooling((mode,))(TOKENS, STARTS, normalize=[False, False])

    np.testing.assert_allclose(vectors[0], expected, rtol=1e-6)
    np.testing.assert_allclose(vectors[1], [7, 7])


def test_several_poolings_stand_side_by_side() -> None:
    vectors = Pooling(("cls", "max"))(TOKENS, STARTS, normalize=[False, True])

    np.testing.assert_allclose(vectors[0], [1, -4, 5, 2])
    np.testing.assert_allclose(np.linalg.norm(vectors[1]), 1, rtol=1e-6)


def test_a_zero_vector_is_not_divided_by_zero() -> None:
    assert not Pooling()(np.zeros((2, 3), np.float32), np.array([0, 2], np.int32), normalize=[True]).any()


def test_minilms_own_configuration(minilm: Path) -> None:
    assert read_pooling(ModelSource("minilm", minilm, None)) == Pooling(("mean",), (), normalize=True)


def test_without_a_configuration_it_is_the_mean(tmp_path: Path) -> None:
    assert read_pooling(source(tmp_path)) == Pooling(("mean",), (), normalize=False)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, ("max", "mean")),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean", "max"]}, ("mean", "max")),
    ],
)
@pytest.mark.parametrize("prefix", [OLD, NEW])
def test_old_and_new_files_are_read(
    config: dict[str, Any], modes: tuple[str, ...], prefix: str, tmp_path: Path
) -> None:
    modules = [module(0, prefix + "Transformer"), module(1, prefix + "Pooling", "1_Pooling")]

    assert read_pooling(source(tmp_path, modules=modules, files={"1_Pooling/config.json": config})).modes == modes


def test_a_dense_layer_follows_the_pooling(tmp_path: Path) -> None:
    modules = [
        module(0, OLD + "Transformer"),
        module(1, OLD + "Pooling", "1_Pooling"),
        module(2, OLD + "Dense", "2_Dense"),
        module(3, OLD + "Normalize", "3_Normalize"),
    ]
    files = {
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"},
    }
    found = source(tmp_path, modules=modules, files=files)
    weight, bias = np.array([[0.5, 0.0], [0.0, 0.25], [1.0, 1.0]], np.float32), np.array([0.1, 0, 0], np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense" / "model.safetensors")

    pooling = read_pooling(found)

    assert pooling.describe() == "cls, dense, normalize"
    expected = np.tanh(weight @ TOKENS[0] + bias)
    np.testing.assert_allclose(pooling(TOKENS, STARTS, normalize=[False, False])[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("modules", "config", "said"),
    [
        ([module(0, OLD + "LSTM", "0_LSTM")], {}, "has a LSTM"),
        ([module(0, OLD + "Pooling", "1_Pooling")], {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ([module(0, OLD + "Pooling", "1_Pooling")], {"pooling_mode": "attention"}, "attention"),
        ([module(0, OLD + "Pooling", "1_Pooling")], {}, "none"),
        ([module(0, OLD + "Dense", "2_Dense")], {}, r"no model\.safetensors"),
    ],
)
def test_what_is_not_known_is_refused_by_name(modules: Any, config: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=said):
        read_pooling(source(tmp_path, modules=modules, files={"1_Pooling/config.json": config}))


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"modules\.json is not JSON"):
        read_pooling(ModelSource("the model", tmp_path, None))
