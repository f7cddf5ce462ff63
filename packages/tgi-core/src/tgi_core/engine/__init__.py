"""Puts everything together: wishes to settings, settings to a running engine, an engine to a process."""
