"""Other queues, each set up as its own users would, for `headrace bench transport` to compare with.

These programs run under a Python of their own (`make peers` makes it), since arq needs an older redis-py.
Each is called as `PROGRAM URL JOBS PAYLOAD_BYTES`, starts its worker, hands over the jobs, waits for every
result, and prints one JSON object with `jobs_per_s`. They import nothing of headrace.
"""

__all__: list[str] = []
