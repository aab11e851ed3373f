"""A job's stream, as its consumer sees it: text as it is generated, without a gap or a repeat, and the result."""
