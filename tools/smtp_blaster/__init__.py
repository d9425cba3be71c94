"""smtp-blaster: a load source and a matching sink for SMTP and LMTP, with ledgers that prove what
arrived."""
