"""Side by side with other servers on this machine: `make bench-peers`."""
