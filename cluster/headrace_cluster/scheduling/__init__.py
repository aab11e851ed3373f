"""What goes where next: the pure decisions of a router. No I/O, no clock; time is passed in."""
