"""Takes a job to its next hop and returns one Outcome per recipient."""
