"""What is wrong with a service, why that matters, and what to type against it: behind `headrace doctor`.

Each file asks one thing (a server, its keys) and has a pure function that judges what it was told. Other packages
add what they know of by the entry point group `headrace.doctor`.
"""

from __future__ import annotations

from headrace.doctor.diagnosis import Case, Diagnosis, Examiner, Level, worst
from headrace.doctor.key_space import examine_keys
from headrace.doctor.redis_server import examine_redis

__all__ = ["Case", "Diagnosis", "Examiner", "Level", "examine_keys", "examine_redis", "worst"]
