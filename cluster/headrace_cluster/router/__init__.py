"""The way of a model's jobs through a router: lanes in, batches out, answers and lost replicas seen to. Thin I/O."""
