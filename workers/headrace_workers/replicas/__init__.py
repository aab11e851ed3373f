"""Replicas: what stands between a router's call and an engine, and writes the answers."""
