"""What a device can do, and how one is chosen."""
