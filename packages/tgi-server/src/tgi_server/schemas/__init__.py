"""What clients send and get, as it is spelled on the wire.  Limits are checked in `validation`, not here."""
