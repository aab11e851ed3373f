"""Inboxes: where answers come to, read once for each process and given to whoever waits."""
