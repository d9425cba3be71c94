"""IMAP: sessions, and one file for each command (or family of commands); see session.py."""
