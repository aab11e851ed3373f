"""What a service is told, and by whom: its settings, the layers they come from, and words for what is wrong."""
