"""The same recipes on a model that reads no text: handwritten digits, a small network of plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from headrace.errors import ArtifactError, CompressionError, ModelLoadError
from headrace_workers.artifacts.artifact import Artifact, open_artifact
from headrace_workers.compression.build import build_artifact
from headrace_workers.compression.data import Examples, Split, split
from headrace_workers.compression.edge.export import export_artifact
from headrace_workers.compression.pipeline import compress_subject
from headrace_workers.compression.recipe import (
    Losses,
    Prune,
    PruneStructured,
    Quantize,
    Recipe,
    Recover,
    Training,
    WeightScheme,
)
from headrace_workers.compression.subject import ModuleSubject
from headrace_workers.kernels.layers import QuantizedLinear
from headrace_workers.models.custom import load_custom


def make() -> nn.Module:
    """The network as it was before it was compressed: what the code that loads an artifact must bring."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def make_convolutional() -> nn.Module:
    """A network that looks at pictures as pictures."""
    torch.manual_seed(0)
    seen = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(seen, nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def _trained(module: nn.Module, examples: Examples) -> nn.Module:
    x, y = torch.stack(list(examples.inputs)), torch.tensor(examples.labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss: Tensor = nn.functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def data() -> Split:
    """1797 pictures of 8 by 8, each a vector of 64."""
    found = load_digits()
    pictures = torch.tensor(found.data / 16.0, dtype=torch.float32)
    return split(Examples(list(pictures), found.target.tolist(), tuple("0123456789")))


@pytest.fixture(scope="module", params=[make, make_convolutional])
def digits(request: pytest.FixtureRequest, data: Split) -> tuple[Callable[[], nn.Module], ModuleSubject]:
    """A trained classifier, and what makes its like."""
    return request.param, ModuleSubject(_trained(request.param(), data.train))


def _accuracy(module: nn.Module, examples: Examples) -> float:
    with torch.inference_mode():
        said = module(torch.stack(list(examples.inputs))).argmax(1)
    return float((said == torch.tensor(examples.labels)).float().mean())


def _recipe(*stages: PruneStructured | Prune | Recover | Quantize) -> Recipe:
    return Recipe(stages=list(stages))


_RECOVER = Recover(
    losses=Losses(task=0.5, embedding=0.0), training=Training(steps=40, batch_size=64, learning_rate=2e-3)
)


def test_pruned_recovered_and_in_int8_it_still_reads_digits(
    digits: tuple[Callable[[], nn.Module], ModuleSubject], data: Split, tmp_path: Path
) -> None:
    factory, subject = digits
    recipe = _recipe(PruneStructured(target="ffn", ratio=0.5), _RECOVER, Quantize())
    compress_subject(subject, data, recipe, tmp_path / "small")
    small = load_custom(tmp_path / "small", factory, kernels="int8")
    assert _accuracy(small, data.test) > _accuracy(subject.module, data.test) - 0.02
    widths = [layer.out_features for layer in small.modules() if isinstance(layer, QuantizedLinear)]
    full = [layer.out_features for layer in factory().modules() if isinstance(layer, nn.Linear)]
    assert widths[0] == full[0] // 2


@pytest.fixture(scope="module")
def artifact(data: Split, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The plain network with half of its weights zero, and the others in four bits."""
    folder = tmp_path_factory.mktemp("digits") / "small"
    subject = ModuleSubject(_trained(make(), data.train))
    four = Quantize(weights=WeightScheme(bits=4, group=32, symmetric=False, activations={"kind": "none"}))
    compress_subject(subject, data, _recipe(Prune(amount=0.5), _RECOVER, four), folder)
    return open_artifact(folder)


def test_zeros_and_four_bits_go_together(artifact: Artifact, data: Split) -> None:
    module = load_custom(artifact, make, kernels="fp32")
    assert artifact.manifest.task == "custom"
    assert _accuracy(module, data.test) > 0.9


def test_it_is_exported_with_an_example_of_its_input(artifact: Artifact, data: Split, tmp_path: Path) -> None:
    path = export_artifact(artifact, "onnx", tmp_path / "digits.onnx", factory=make, example=data.test.inputs[0])
    x = torch.stack(list(data.test.inputs))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x.numpy()})
    with torch.inference_mode():
        expected: Tensor = load_custom(artifact, make, kernels="fp32")(x)
    assert float((torch.from_numpy(answer).argmax(1) == expected.argmax(1)).float().mean()) > 0.98


def test_exporting_it_takes_its_code(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="give the factory of its module, and an example"):
        export_artifact(artifact, "onnx", tmp_path / "digits.onnx")


def test_another_network_than_the_artifacts_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"2\.weight is \[128, 256\]"):
        load_custom(artifact, make_convolutional)
    with pytest.raises(ArtifactError, match="differ by 5"):
        load_custom(artifact, lambda: nn.Sequential(*make().children(), nn.Linear(10, 10)))


def test_a_text_models_artifact_is_no_custom_one(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    artifact = build_artifact(tiny_model("Bert"), tmp_path / "bert")
    with pytest.raises(ModelLoadError, match="was made for embedding"):
        load_custom(artifact, make)
