"""What a replica tells of itself: metrics, spans, and how long it took to start."""
