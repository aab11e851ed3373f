"""What `headrace doctor` looks at where the cluster extra is installed: a configuration, its artifacts, GPUs, and Ray.

The command finds `examine` by the entry point group `headrace.doctor`.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.doctor import Case, Diagnosis
from headrace_cluster.doctor.configuration import examine_config
from headrace_cluster.doctor.ray_cluster import examine_ray

__all__ = ["examine"]


def examine(case: Case) -> Iterator[Diagnosis]:
    """Everything that this package knows of; what the configuration says of Redis goes into the case."""
    config, found = examine_config(case)
    yield from found
    yield from examine_ray(case.ray_address, config)
