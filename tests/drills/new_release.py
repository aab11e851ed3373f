"""Another release of the code: a second Ray cluster beside the first on one Redis, which takes over and stays alone.

That is what KubeRay does with a change of the image. Each cluster's pods find their own code first on their path, as
an image has it. Run in namespaces of its own, with a folder as its argument; prints what it measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from deploy.operator_stand_in import jobs_url, manifests_with
from deploy.pods import PodNetwork
from drills.load import Answer, Load, figures
from drills.pod_cluster import START_S, PodCluster, pod_network
from headrace import Client
from support.waiting import eventually_sync

__all__ = ["main"]

MODEL: Final = "minilm"
OLD, NEW = "old", "new"
_SOME: Final = 200
"""Answers: some seconds' worth of them."""
_MANIFESTS: Final = manifests_with({"kind": "custom", "target": "release:Release"}, "dev")
_CODE: Final = """
from drills.engine import TellingEngine


class Release(TellingEngine):
    release = "{name}"
"""
_VARIABLES: Final = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5"}
"""A node without another one to go to is not drained any sooner if it is given longer."""
_GRACE_S: Final = 60.0


def main(folder: Path) -> dict[str, Any]:
    """Start a cluster, put it under load, start another beside it, and delete the first when the other has the jobs."""
    with pod_network(_MANIFESTS, folder) as network:
        url = jobs_url(network)
        old = _cluster(OLD, network)
        with Load(url, MODEL, "sleep:0.02") as load:
            told = _drill(old, load)
        with Client(url) as client:
            audit = client.audit(MODEL)
        told["audit"] = {"submitted": audit.submitted, "ok": audit.ok, "lost": audit.lost, "doubled": audit.doubled}
        return told | {"answered": len(load.answers), "by_release": dict(Counter(map(_release, load.answers)))}


def _cluster(name: str, network: PodNetwork) -> PodCluster:
    """A cluster whose image has a release of that name."""
    code = network.folder / f"code-{name}"
    code.mkdir()
    (code / "release.py").write_text(_CODE.format(name=name))
    paths = {"PYTHONPATH": f"{code}{os.pathsep}{os.environ['PYTHONPATH']}"}
    cluster = PodCluster(name, _MANIFESTS, network, _VARIABLES | paths)
    cluster.serve("cpu")
    return cluster


def _drill(old: PodCluster, load: Load) -> dict[str, Any]:
    begin_s = time.monotonic()
    eventually_sync(lambda: load.more_than(_SOME, begin_s), within_s=START_S)
    _cluster(NEW, old.network)
    ready_s = time.monotonic()
    eventually_sync(lambda: _only_new(load), within_s=START_S)

    deleted_s = time.monotonic()
    old.delete(grace_s=_GRACE_S)
    gone_s = time.monotonic()
    eventually_sync(lambda: load.more_than(_SOME, gone_s), within_s=START_S)
    first_new_s = min(answer.at_s for answer in load.answers if _release(answer) == NEW)
    last_old_s = max(answer.at_s for answer in load.answers if _release(answer) == OLD)
    return {
        "while_it_starts": figures([answer for answer in load.answers if answer.at_s < first_new_s]),
        "while_it_takes_over": figures([one for one in load.answers if first_new_s - 1 <= one.at_s <= last_old_s + 1]),
        "afterwards": figures(load.since(deleted_s)),
        "both_answered_s": round(last_old_s - first_new_s, 2),
        "took_over_before_ready_s": round(ready_s - first_new_s, 1),
        "deleted_in_s": round(gone_s - deleted_s, 1),
        "old_after_deletion": sum(_release(answer) == OLD for answer in load.since(deleted_s)),
    }


def _release(answer: Answer) -> str:
    return str(answer.output[0])


def _only_new(load: Load) -> bool:
    """Whether the last so many answers were all made by the new release."""
    last = load.answers[-_SOME:]
    return load.goes_on and len(last) == _SOME and {NEW} == set(map(_release, last))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
