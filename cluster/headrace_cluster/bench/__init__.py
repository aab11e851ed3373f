"""`headrace bench`: what this node makes of headrace, always against a limit and against its neighbours.

Absolute figures mean little on a shared machine, so every figure that counts is a ratio of two things measured
in turn within one run.
"""

__all__: list[str] = []
