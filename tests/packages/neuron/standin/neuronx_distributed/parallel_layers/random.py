def model_parallel_xla_manual_seed(seed):
    pass
