"""What mail is: addresses, envelopes, replies, headers, structure, reports.  Values only: no I/O, no clock."""
