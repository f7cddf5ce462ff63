def _gather_along_dim(tensor, partition_dim, process_group=None):
    return tensor


def gather_from_tensor_model_parallel_region(tensor, process_group=None):
    return tensor


reduce_from_tensor_model_parallel_region = gather_from_tensor_model_parallel_region
