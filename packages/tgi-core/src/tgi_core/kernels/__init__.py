"""The ops that models are made of, their meaning, and how an implementation of each is chosen."""
