"""Recovery drills on whole Ray clusters: what happens to clusters in production, done to real ones on this machine."""
