def cast_to_fp8_v2(*args, **kwargs):
    raise NotImplementedError("the stand-in has no float8")
