"""Strands Agents sessions in MongoDB."""
