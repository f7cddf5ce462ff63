class FusedAdamW:
    pass
