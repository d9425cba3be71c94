"""Decisions: each returns None (go on) or the Reply that refuses.  Writes no replies and no files."""
