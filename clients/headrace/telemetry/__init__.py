"""What is told to those who watch: names of metrics, logs for machines, traces."""
