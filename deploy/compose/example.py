"""A producer and a consumer that know of each other only the name of an inbox.

example.py produce MODEL COUNT      hands jobs over and goes
example.py consume MODEL COUNT      reads the answers, now or tomorrow
"""

from __future__ import annotations

import sys

from headrace import Client, Job

INBOX = "example"


def produce(model: str, count: int) -> None:
    """Hand jobs over. They are on Redis's disk when this returns; nobody needs to run yet."""
    with Client() as client:
        receipts = client.submit_many([Job(model=model, input=f"line {n}", inbox=INBOX) for n in range(count)])
    print(f"handed over {len(receipts)} jobs")


def consume(model: str, count: int) -> None:
    """Read answers in the order in which they come, and delete each batch of them when it is dealt with."""
    with Client() as client:
        for number, result in enumerate(client.results(INBOX, model=model), 1):
            print(result.id, result.unwrap() if result.ok else result.failure)
            if number == count:
                client.trim(INBOX, model=model, through=result.cursor)
                return


if __name__ == "__main__":
    command, model, count = sys.argv[1:]
    {"produce": produce, "consume": consume}[command](model, int(count))
