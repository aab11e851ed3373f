"""Changing a running service: what differs, in which order it is done, and what becomes of the jobs."""
