"""From Strands' events to queued operations, and back."""
