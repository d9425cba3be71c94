"""What goes where, when, and how fast."""
