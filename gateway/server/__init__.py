"""Sessions: event -> policy -> spool -> reply.  A session translates; it decides nothing itself."""
