"""headrace cluster: the Serve application with its router, pools and settings, and what operates it.

Importing the package itself is cheap; its modules bring in ray and torch.
"""

__all__: list[str] = []
