"""Who has a mailbox here, where their mail goes, and whether a client is who it says it is."""
