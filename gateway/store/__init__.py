"""The message store: accounts' mailboxes, messages, flags and search; see store.py."""
