"""deploy/ proven without a cluster: rendered, held against every rule there is, and run."""
