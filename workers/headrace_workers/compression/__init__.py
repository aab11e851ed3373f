"""Compression: from a plain model to a smaller, faster one, and to the artifact that holds it."""

from headrace_workers.compression.build import build_artifact
from headrace_workers.compression.quantization.quantize import LEFT_ALONE, QuantizationReport, quantize_model

__all__ = ["LEFT_ALONE", "QuantizationReport", "build_artifact", "quantize_model"]
