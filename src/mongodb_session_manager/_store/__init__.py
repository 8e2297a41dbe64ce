"""The commands: nothing else sends any."""
