"""Which replica is free, as routers count it: slots of one model's replicas, or of those that models share. Pure."""
