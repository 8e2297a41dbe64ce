"""Clients, their threads, and what their connections do."""
