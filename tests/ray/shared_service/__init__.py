"""What one running service is enough for. A package, so that it ends before others start Rays of their own."""
