"""Text to token ids and back, and chats to text.  Imports no torch."""
