"""What int8 does to an encoder: size, speed and answers, with activations scaled in two ways, beside other libraries.

All of them get the same texts and the same calibration data, and are compared with the same model in fp32.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError
from headrace_cluster.corpus import heavy_tailed_texts, reference_texts
from headrace_workers.compression.data import Examples, Split
from headrace_workers.compression.evaluation.judging import Measures
from headrace_workers.compression.evaluation.speed import compare, engine_contestant
from headrace_workers.compression.pipeline import compress_subject
from headrace_workers.compression.recipe import ActivationScheme, Calibration, Quantize, Recipe, WeightScheme
from headrace_workers.compression.subject import TextSubject, load_subject
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

__all__ = ["Int8Plan", "measure_int8"]

_CALIBRATION: Final = 256
_LONGEST: Final = 1 << 20
_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class Int8Plan:
    """How much to measure.

    Args:
        texts: how many answers are compared.
        timed_texts: how many the speed is measured with.
        rounds: how often each contestant runs over those.
    """

    texts: int = 512
    timed_texts: int = 512
    rounds: int = 7

    @classmethod
    def quick(cls) -> Int8Plan:
        """A short look."""
        return cls(texts=96, timed_texts=64, rounds=2)


def measure_int8(
    model: Path, folder: Path, plan: Int8Plan, say: Callable[[str], None], *, peers: Path | None
) -> dict[str, Any]:
    """Compress an encoder with each way to scale activations, and have the peers compress it.

    Args:
        model: a Hugging Face folder.
        folder: where artifacts may be written.
        plan: how much to measure.
        say: is told what is being done.
        peers: virtual environments of other libraries; None leaves them out.
    """
    source = find_source(str(model))
    subject, data = load_subject(source), _data(plan)
    timed = heavy_tailed_texts(plan.timed_texts, load_tokenizer(source, _LONGEST).lengths)
    rows = []
    for name, activations in _ACTIVATIONS.items():
        say(f"quantizing to int8, activations {name}")
        rows.append(_measured(subject, data, timed, name, activations, folder / f"int8-{name}", plan))
    if peers is not None:
        say("quantizing with onnxruntime and OpenVINO")
        rows += _of_peers(subject, data, timed, folder, peers)
    ours = rows[0]
    return {
        "int8_size_ratio": ours["size_ratio"],
        "int8_speedup": ours["speedup"],
        "int8_cosine_mean": ours["cosine_mean"],
        "int8_batch_invariant": ours["batch_invariant"],
        "int8": rows,
    }


_ACTIVATIONS: Final = {
    "dynamic": ActivationScheme(kind="dynamic_token"),
    "static histogram": ActivationScheme(kind="static", observer="histogram"),
    "static minmax": ActivationScheme(kind="static", observer="minmax"),
}


def _data(plan: Int8Plan) -> Split:
    """Calibration data and texts to judge by, of which no two are one."""
    texts = reference_texts(_CALIBRATION + 8 + plan.texts, seed=11)
    return Split(
        train=Examples(texts[:_CALIBRATION]),
        validation=Examples(texts[_CALIBRATION : _CALIBRATION + 8]),
        test=Examples(texts[_CALIBRATION + 8 :]),
    )


def _measured(
    subject: TextSubject,
    data: Split,
    timed: Sequence[str],
    name: str,
    activations: ActivationScheme,
    output: Path,
    plan: Int8Plan,
) -> dict[str, Any]:
    stage = Quantize(weights=WeightScheme(activations=activations), calibration=Calibration(samples=_CALIBRATION))
    report = compress_subject(
        subject,
        data,
        Recipe(stages=[stage]),
        output,
        model=subject.source.folder,
        measures=Measures(examples=plan.texts, speed=False),
    )
    speed = compare(
        engine_contestant(subject.source.folder, task=subject.task),
        engine_contestant(output),
        {"mixed": timed},
        rounds=plan.rounds,
    )
    figures = {key: report.metrics[key] for key in ("size_ratio", "cosine_mean", "cosine_min", "batch_invariant")}
    return {
        "by": f"headrace, {name}",
        **figures,
        "batch_invariant": bool(figures["batch_invariant"]),
        "speedup": speed.speedup,
        "texts_per_s": speed.buckets["mixed"].items_per_s,
        "worst_layer": next((note for note in report.stages[-1].notes if "worst" in note), ""),
    }


def _of_peers(
    subject: TextSubject, data: Split, timed: Sequence[str], folder: Path, peers: Path
) -> list[dict[str, Any]]:
    """What the program in `peers/int8_encoder_peer.py` says, run by the peers' own Python."""
    from headrace_cluster.bench.onnx_encoder import write_onnx_encoder

    onnx = folder / "fp32.onnx"
    write_onnx_encoder(subject, onnx)
    ids = [subject.batch([text]).inputs["input_ids"][0].numpy() for text in (*data.train, *data.test, *timed)]
    tokens = folder / "tokens.npz"
    np.savez(tokens, ids=np.concatenate(ids), lengths=[len(row) for row in ids])
    program = Path(__file__).parent / "peers" / "int8_encoder_peer.py"
    python = peers.absolute() / "compression" / "bin" / "python"
    command = [
        str(python),
        str(program),
        str(onnx),
        str(tokens),
        str(folder),
        *map(str, (_THREADS, len(data.train), len(timed))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HeadraceError(f"{program.name} failed: {done.stderr.strip()[-2000:]}")
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    expected = _embeddings(subject, data)
    return [_row(row, expected, folder, onnx.stat().st_size) for row in said]


def _embeddings(subject: TextSubject, data: Split) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        rows = [subject.answers(batch).rows for batch in subject.batches(data.test, 32)]
    return torch.cat(rows).numpy()


def _row(said: dict[str, Any], expected: NDArray[np.float32], folder: Path, fp32_bytes: int) -> dict[str, Any]:
    got = np.load(folder / f"{said['library']}.npy")
    cosines = (got * expected).sum(1)
    return {
        "by": said["library"],
        "size_ratio": said["bytes"] / fp32_bytes,
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "batch_invariant": None,
        "speedup": None,
        "texts_per_s": said["texts_per_s"],
        "worst_layer": "",
    }
