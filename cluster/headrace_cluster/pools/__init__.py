"""A model's replicas behind Ray Serve, and how a router calls the very one that it chose."""
