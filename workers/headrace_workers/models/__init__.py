"""Models: finding their files, loading them, and running them over packed sequences."""
