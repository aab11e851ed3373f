"""The cluster under a simulated clock: the very classes of production, a thousand replicas, and no real time.

What decides here is what decides in a router and in the controller: `Scheduler` with its batch former and slots,
`entries_to_read`, `CostModel`, `Autoscaler`. What is simulated is everything around them: arrivals, lanes, replicas
that take a while, nodes that go.
"""

from __future__ import annotations
