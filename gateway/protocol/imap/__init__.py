"""IMAP on the wire: octets, commands, responses.  What commands do is in gateway/server/imap."""
