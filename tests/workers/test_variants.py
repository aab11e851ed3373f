"""One artifact, several forms of a model: each node takes what is made for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.errors import ArtifactError
from headrace_workers.artifacts.artifact import Artifact, Requires, Source, VariantContent, write_artifact
from headrace_workers.models.variants import fitting_variant


def artifact(path: Path, **requires: Requires) -> Artifact:
    return write_artifact(
        path / "model",
        task="embedding",
        source=Source(name="tiny", sha256="0" * 64),
        files={"config.json": b"{}"},
        variants={
            name: VariantContent({"weight": torch.ones(2)}, {}, requires=what) for name, what in requires.items()
        },
    )


def test_the_first_that_fits_is_taken(tmp_path: Path) -> None:
    made = artifact(
        tmp_path,
        amx=Requires(any_isa=["amx_int8"]),
        vnni=Requires(any_isa=["avx512_vnni", "amx_int8"]),
        plain=Requires(),
    )
    assert fitting_variant(made, device="cpu", flags={"amx_int8", "avx2"}) == "amx"
    assert fitting_variant(made, device="cpu", flags={"avx512_vnni"}) == "vnni"
    assert fitting_variant(made, device="cpu", flags=set()) == "plain"


def test_a_gpu_takes_its_own_or_a_processors(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    both = artifact(tmp_path / "both", int8=Requires(), half=Requires(device="cuda"))
    assert fitting_variant(both, device="cuda", flags=set()) == "half"
    assert fitting_variant(both, device="cpu", flags=set()) == "int8"
    assert fitting_variant(artifact(tmp_path, int8=Requires()), device="cuda", flags=set()) == "int8"


def test_a_node_that_none_is_made_for_is_told_what_is_missing(tmp_path: Path) -> None:
    made = artifact(tmp_path, half=Requires(device="cuda"), amx=Requires(any_isa=["amx_int8", "amx_bf16"]))
    with pytest.raises(ArtifactError, match=r"half needs a GPU .*; amx needs amx_int8 or amx_bf16"):
        fitting_variant(made, device="cpu", flags={"avx2"})
