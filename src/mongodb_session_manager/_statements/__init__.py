"""Filters, updates and projections, one file per subject: pure.

A statement that changes a session names in its filter which ``incarnation`` of the session it means and that no
other process holds the lease; an append also names the ``message_id`` it expects to be next. So the server decides,
in one atomic update, whether the writer's picture of the session is still true.
"""
