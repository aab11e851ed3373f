"""Judging: quality, speed and memory against the model as it came, and the gates of a recipe."""
