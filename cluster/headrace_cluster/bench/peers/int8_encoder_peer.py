"""int8 encoders by other libraries: onnxruntime's dynamic quantization, and OpenVINO's static one by NNCF.

Takes an ONNX encoder (`input_ids`, `attention_mask` → hidden states) and token ids: texts to calibrate with, texts to
embed, and texts to be timed with. Answers for each library with mean-pooled, normalized embeddings, the size of its
model and texts a second, sorted by length and padded by 32 as its users would.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

BATCH = 32


def batches(texts: list[np.ndarray]):
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        longest = max(len(texts[at]) for at in places)
        ids = np.zeros((len(places), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, at in enumerate(places):
            ids[row, : len(texts[at])] = texts[at]
            mask[row, : len(texts[at])] = 1
        yield places, {"input_ids": ids, "attention_mask": mask}


def embedded(run, texts: list[np.ndarray]) -> tuple[np.ndarray, float]:
    found = [None] * len(texts)
    started = time.perf_counter()
    for places, feed in batches(texts):
        mask = feed["attention_mask"][..., None]
        vectors = (run(feed) * mask).sum(1) / mask.sum(1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for place, vector in zip(places, vectors, strict=True):
            found[place] = vector
    return np.stack(found), len(texts) / (time.perf_counter() - started)


def onnxruntime_runner(path: Path, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {part.name for part in session.get_inputs()}
    return lambda feed: session.run(None, {name: value for name, value in feed.items() if name in names})[0]


def onnxruntime_dynamic(model: Path, folder: Path, _calibration: list[np.ndarray]) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "onnxruntime_int8.onnx"
    quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True)
    return path


def openvino_runner(path: Path, threads: int):
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = core.compile_model(str(path), "CPU", hints)
    names = {name for part in compiled.inputs for name in part.get_names()}
    return lambda feed: compiled({name: value for name, value in feed.items() if name in names})[0]


def openvino_static(model: Path, folder: Path, calibration: list[np.ndarray]) -> Path:
    import nncf
    import openvino

    samples = [feed for _, feed in batches(calibration)]
    quantized = nncf.quantize(
        openvino.Core().read_model(str(model)),
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    path = folder / "openvino_int8.xml"
    openvino.save_model(quantized, str(path))
    return path


LIBRARIES = {
    "onnxruntime": (onnxruntime_dynamic, onnxruntime_runner),
    "openvino": (openvino_static, openvino_runner),
}


def main(model: Path, tokens: Path, folder: Path, threads: int, first: int, timed: int) -> None:
    given = np.load(tokens)
    texts = np.split(given["ids"], np.cumsum(given["lengths"])[:-1])
    calibration, texts, mixed = texts[:first], texts[first:-timed], texts[-timed:]
    for name, (quantize, runner) in LIBRARIES.items():
        path = quantize(model, folder, calibration)
        run = runner(path, threads)
        vectors, _ = embedded(run, texts)
        _, rate = embedded(run, mixed)
        np.save(folder / f"{name}.npy", vectors.astype(np.float32))
        size = sum(part.stat().st_size for part in folder.glob(f"{path.stem}.*") if part.suffix != ".npy")
        print(json.dumps({"library": name, "bytes": size, "texts_per_s": rate}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:7]))
