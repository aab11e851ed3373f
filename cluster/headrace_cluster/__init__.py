"""headrace cluster: the Serve application with its router, pools and settings, and what operates it.

Importing the package itself is cheap; its modules bring in ray and torch.
"""

import os

# Ray starts a cluster for whoever asks it anything while there is none, as threads do at the end of a service.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

__all__: list[str] = []
