"""What clients send, as they spell it.  Limits are checked in `validation`, not here."""
