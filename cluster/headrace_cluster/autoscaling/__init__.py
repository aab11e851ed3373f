"""How many replicas each pool gets: decided in pure classes, looked up in Redis by a thread, asked for by Serve."""
