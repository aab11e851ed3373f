"""Many models in one process: loading, evicting, taking turns at the cores."""
