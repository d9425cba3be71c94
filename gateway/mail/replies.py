"""Every reply the SMTP and LMTP server sends of its own accord, by name.

Standards RFC 5321 §4.2.3, §4.3.2; RFC 3463 and RFC 5248 for the enhanced status; RFC 2034 (none on 3xx, greeting, EHLO)
"""

from __future__ import annotations

from gateway.mail.reply import Reply

# -- progress --------------------------------------------------------------------------------------------------------
SENDER_OK = Reply(250, "2.1.0", "Sender ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient ok")
START_MAIL_INPUT = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
CHUNK_OK = Reply(250, "2.0.0", "Chunk ok")
RESET_OK = Reply(250, "2.0.0", "Reset")
NOOP_OK = Reply(250, "2.0.0", "Ok")
HELP = Reply(214, "2.0.0", "RFC 5321 commands; see the gateway's documentation")
AUTHENTICATED = Reply(235, "2.7.0", "Authentication succeeded")
CLOSING = Reply(221, "2.0.0", "Closing connection", close=True)
CANNOT_VERIFY = Reply(
    252, "2.1.5", "Cannot VRFY user, but will accept message and attempt delivery"
)
READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")

# -- order and syntax ------------------------------------------------------------------------------------------------
COMMAND_UNKNOWN = Reply(500, "5.5.1", "Command not recognised")
EXPN_DISABLED = Reply(502, "5.5.1", "EXPN is not available here")
HELLO_FIRST = Reply(503, "5.5.1", "Send EHLO first")
HELLO_NEEDS_DOMAIN = Reply(501, "5.5.4", "EHLO and HELO need your domain or address literal")
USE_LHLO = Reply(500, "5.5.1", "This is LMTP: greet with LHLO")
MAIL_FIRST = Reply(503, "5.5.1", "Send MAIL FROM first")
NESTED_MAIL = Reply(503, "5.5.1", "MAIL was already given; RSET starts again")
OUT_OF_SEQUENCE = Reply(503, "5.5.1", "Bad sequence of commands")
RCPT_AFTER_BDAT = Reply(503, "5.5.1", "RCPT is not allowed once BDAT has begun")
DATA_AFTER_BDAT = Reply(503, "5.5.1", "DATA cannot follow BDAT in one transaction")
NO_VALID_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")
BINARYMIME_NEEDS_BDAT = Reply(503, "5.5.1", "BODY=BINARYMIME needs BDAT")
ARGUMENT_NEEDED = Reply(501, "5.5.4", "Argument needed")
NO_ARGUMENT_ALLOWED = Reply(501, "5.5.4", "No argument allowed")
SYNTAX_ERROR = Reply(501, "5.5.4", "Syntax error in parameters or arguments")
BAD_PATH = Reply(501, "5.1.7", "Bad address syntax")
PATH_TOO_LONG = Reply(501, "5.1.7", "Address too long")
BAD_PARAMETER = Reply(501, "5.5.4", "Bad parameter")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Parameter not recognised or not implemented")
LINE_TOO_LONG = Reply(500, "5.5.6", "Line too long")
BARE_LF_IN_COMMAND = Reply(500, "5.5.2", "Bare <LF>: lines end in <CR><LF>")
NUL_IN_COMMAND = Reply(500, "5.5.2", "NUL in a command")
EIGHT_BIT_IN_COMMAND = Reply(500, "5.5.2", "8-bit octet in a command")
DATA_AFTER_STARTTLS = Reply(501, "5.5.1", "Octets after STARTTLS: wait for the reply", close=True)
TLS_ACTIVE = Reply(503, "5.5.1", "TLS is already active")
TLS_UNAVAILABLE = Reply(454, "4.7.0", "TLS not available due to a local problem")
AUTH_TWICE = Reply(503, "5.5.1", "You are authenticated already")  # RFC 4954 §4
AUTH_IN_TRANSACTION = Reply(503, "5.5.1", "AUTH is not allowed in a transaction")  # RFC 4954 §4
AUTH_REQUIRED = Reply(530, "5.7.0", "Authentication required")  # RFC 4954 §6
AUTH_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")  # RFC 4954 §4
AUTH_MALFORMED = Reply(501, "5.5.2", "Not base64")
AUTH_LINE_TOO_LONG = Reply(500, "5.5.6", "Authentication exchange line is too long")
XCLIENT_DENIED = Reply(550, "5.7.0", "XCLIENT is not for you")
NEEDS_SMTPUTF8_SENDER = Reply(550, "5.6.7", "Non-ASCII sender needs SMTPUTF8")
NEEDS_SMTPUTF8_RECIPIENT = Reply(553, "5.6.7", "Non-ASCII recipient needs SMTPUTF8")

# -- bounds ----------------------------------------------------------------------------------------------------------
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")  # RFC 5321 §4.5.3.1.10
TOO_MANY_TRANSACTIONS = Reply(421, "4.7.0", "Too many messages in one session", close=True)
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors", close=True)
TOO_MANY_SESSIONS = Reply(421, "4.7.0", "Too many connections; try again later", close=True)
TOO_MANY_FROM_CLIENT = Reply(421, "4.7.0", "Too many connections from your address", close=True)
TIMEOUT = Reply(421, "4.4.2", "Timeout: closing connection", close=True)
TOO_SLOW = Reply(421, "4.4.2", "Data came too slowly: closing connection", close=True)
SHUTTING_DOWN = Reply(421, "4.3.2", "Service shutting down; try again later", close=True)
INTERNAL_ERROR = Reply(451, "4.3.0", "Local error; try again later")
BACKED_UP = Reply(450, "4.4.5", "Too much mail waits for this destination; try again later")
OUT_OF_MEMORY = Reply(452, "4.3.1", "Not enough memory at the moment; try again later")
MESSAGE_TOO_BIG = Reply(552, "5.3.4", "Message exceeds the size limit")
EARLY_TALKER = Reply(554, "5.5.1", "You spoke before my greeting", close=True)

# -- content ---------------------------------------------------------------------------------------------------------
BARE_LINE_END = Reply(554, "5.6.0", "Bare <CR> or <LF> in the message; lines end in <CR><LF>")
NUL_IN_CONTENT = Reply(554, "5.6.0", "NUL in the message")
TOO_MANY_HOPS = Reply(554, "5.4.6", "Too many Received fields: mail loop")

# -- policy ----------------------------------------------------------------------------------------------------------
RELAYING_DENIED = Reply(550, "5.7.1", "Relaying denied")
NO_ROUTE = Reply(550, "5.1.2", "No route to this domain")
NO_SUCH_MAILBOX = Reply(550, "5.1.1", "No such mailbox here")
SENDER_NOT_YOURS = Reply(553, "5.7.1", "The sender is not an address of yours")
MAILBOX_DISABLED = Reply(550, "5.2.1", "The mailbox is disabled")
MAILBOX_UNVERIFIED = Reply(451, "4.3.0", "Cannot look the mailbox up now; try again later")
ALIAS_NEEDS_QUEUE = Reply(451, "4.3.5", "The address leads elsewhere, and this service keeps no mail")
NO_POSTMASTER = Reply(550, "5.1.1", "No postmaster is configured here")
