"""For tests, of this project and of hardware vendors."""
