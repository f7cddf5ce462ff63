def mark_step(device_str="", sync=False):
    pass


def hpu_initialize(model=None, optimizer=None, args=None, mark_only_scales_as_const=False):
    return model


def hpu_set_env(*args, **kwargs):
    pass


hpu_reset_env = hpu_set_inference_env = hpu_teardown_inference_env = hpu_inference_set_env = hpu_set_env


def hpu_inference_initialize(model=None, mark_only_scales_as_const=False, mark_scales=True, mark_non_scales=True):
    return model
