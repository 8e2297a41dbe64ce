"""Filters, updates and projections, one file per subject: pure."""
