"""What Redis holds of each model: its limits and shards, who reads it, how much waits, what was given up."""
