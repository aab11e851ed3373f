"""A producer and consumer that imports nothing of headrace: what a service in another language would do.

    python plain_client.py URL FOLDER_OF_SCRIPTS MODEL

It submits jobs, loses a reply and replays, is interrupted and reads on from its cursor, and prints what it
saw as one JSON object. docs/wire.md is all its author had read.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack
import redis

JOBS_PER_CALL = 128


class PlainClient:
    """Talks to one model."""

    def __init__(self, url: str, scripts: Path, model: str) -> None:
        self.redis: Any = redis.Redis.from_url(url, protocol=2, socket_timeout=5)
        self.text = (scripts / "submit.lua").read_bytes()
        self.sha = hashlib.sha1(self.text).hexdigest()
        self.prefix = f"hr:{{{model}}}:"
        self.inbox = secrets.token_hex(16)

    def submit(self, jobs: dict[str, Any], *, token: str | None = None, tenant: str = "default") -> list[int]:
        """Hand inputs over, each under its id; returns SUBMIT's codes."""
        items, codes = list(jobs.items()), []
        for start in range(0, len(items), JOBS_PER_CALL):
            arguments: list[Any] = [1, 1, token or secrets.token_hex(4), self.inbox, tenant, "-"]
            for job_id, value in items[start : start + JOBS_PER_CALL]:
                arguments += [job_id, 0, "-", msgpack.packb({"input": value})]
            codes += self.call(arguments)
        return codes

    def call(self, arguments: list[Any]) -> list[int]:
        """EVALSHA, loading the script where it is missing."""
        try:
            codes: list[int] = self.redis.evalsha(self.sha, 1, self.prefix, *arguments)
        except redis.exceptions.NoScriptError:
            self.redis.script_load(self.text)
            codes = self.redis.evalsha(self.sha, 1, self.prefix, *arguments)
        return codes

    def answers(self, cursor: str, wanted: int) -> list[tuple[str, str, str, Any]]:
        """The next so many terminal entries behind a cursor: entry id, job id, status, body."""
        found: list[tuple[str, str, str, Any]] = []
        key = f"{self.prefix}r:{self.inbox}"
        while len(found) < wanted:
            reply = self.redis.xread({key: cursor}, count=wanted - len(found), block=1000)
            for entry_id, fields in reply[0][1] if reply else ():
                cursor = entry_id.decode()
                _, job_id, status, _ = fields[b"e"].decode().split(" ")[:4]
                if status != "chunk":
                    found.append((cursor, job_id, status, msgpack.unpackb(fields[b"r"])))
        return found

    def trim(self, cursor: str) -> None:
        """Delete what was consumed."""
        milliseconds, _, number = cursor.partition("-")
        self.redis.xtrim(f"{self.prefix}r:{self.inbox}", minid=f"{milliseconds}-{int(number) + 1}", approximate=False)

    def record(self, job_id: str) -> list[str]:
        """The words of a job's record; none if there is no record."""
        text = self.redis.get(f"{self.prefix}j:{job_id}")
        return text.decode().split(" ") if text else []

    def answer_of(self, job_id: str) -> str:
        """The entry id of the answer of a job that has ended."""
        return self.record(job_id)[2]


def value_of(body: dict[str, Any]) -> Any:
    """An answer's output; a tensor as a list."""
    if "tensor" not in body:
        return body["output"]
    tensor = body["tensor"]
    assert tensor["dtype"] == "float32"
    return list(struct.unpack(f"<{len(tensor['data']) // 4}f", tensor["data"]))


def main(url: str, scripts: str, model: str) -> dict[str, Any]:
    """Everything the document promises, once."""
    client = PlainClient(url, Path(scripts), model)
    jobs: dict[str, Any] = {f"job-{n}": f"drop {n}" for n in range(300)}
    seen: dict[str, Any] = {"models": [name.decode() for name in client.redis.smembers("hr:models")]}
    seen["accepted"] = client.submit(jobs)
    first = client.answers("0", 100)
    client.trim(first[-1][0])
    rest = client.answers(first[-1][0], 200)
    seen["outputs"] = {job_id: value_of(body) for _, job_id, status, body in first + rest if status == "ok"}
    cursors = [tuple(map(int, entry_id.split("-"))) for entry_id, *_ in first + rest]
    seen["cursors_rise"] = cursors == sorted(set(cursors))
    seen["duplicate"] = client.submit({"job-0": "again"})
    seen["replayed"] = [client.submit({"replay": [1.0, -0.5]}, token="c0ffee01") for _ in range(2)]
    seen["tensor"] = value_of(client.answers(rest[-1][0], 1)[0][3])
    seen["state"], seen["no_record"] = client.record("replay")[0], client.record("never")
    client.submit({"bad": "fail"})
    _, _, seen["bad_status"], body = client.answers(client.answer_of("replay"), 1)[0]
    seen["bad_code"] = body["code"]
    seen["unknown_model"] = PlainClient(url, Path(scripts), "nobody").submit({"a": 1})
    seen["imported"] = sorted(name for name in sys.modules if name.startswith("headrace"))
    return seen


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
