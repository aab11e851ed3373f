"""The process whose start `headrace bench cold-start` measures: it prints the seconds of its phases, and ends.

Run as `python -m headrace_cluster.bench.cold_start_process BEGAN MODEL`, BEGAN being when that was, in Unix seconds.
"""

from __future__ import annotations

import json
import sys
import time

__all__ = ["main"]


def main(began_s: float, model: str) -> None:
    """Start an engine as a replica does."""
    process_s = time.time() - began_s
    importing_s = time.perf_counter()
    from headrace_workers import node
    from headrace_workers.engines import encoder, factory  # noqa: F401
    from headrace_workers.replicas.first_answer import answer_once
    from headrace_workers.replicas.replica import Replica  # noqa: F401  # what a replica imports besides its engine
    from headrace_workers.telemetry.cold_start import ColdStart

    start, worker_import_s = ColdStart(), time.perf_counter() - importing_s
    start.note("process", process_s)
    start.note("import", worker_import_s)
    node.prepare_process(1)
    with start.active():
        engine = factory.make_engine(factory.EngineConfig(kind="encoder", model=model))
    answer_once(engine, start)
    print(json.dumps({**start.seconds, "worker_import": worker_import_s}))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2])
