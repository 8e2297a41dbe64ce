"""A MongoDB of one's own: the program, the process that keeps it, its nodes."""
