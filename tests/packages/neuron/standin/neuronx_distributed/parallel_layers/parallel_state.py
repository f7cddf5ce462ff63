"""One core: every group has one member."""


class Alone:
    def size(self):
        return 1

    def rank(self):
        return 0


def model_parallel_is_initialized():
    return True


def get_tensor_model_parallel_group(as_list=False):
    return [[0]] if as_list else Alone()


get_kv_shared_group = get_world_group = get_tensor_model_parallel_group


def get_tensor_model_parallel_size():
    return 1


def get_tensor_model_parallel_rank():
    return 0
