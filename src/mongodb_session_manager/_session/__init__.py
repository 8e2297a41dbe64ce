"""What a manager offers for its session."""
