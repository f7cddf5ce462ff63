"""KV cache bookkeeping: who holds which block, and which blocks hold a reusable prefix.  Imports no torch."""
