class synDeviceType:
    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type():
    return synDeviceType.synDeviceGaudi2


class hpu:
    @staticmethod
    def is_available():
        return True

    @staticmethod
    def device_count():
        return 1


def _set_is_dynamic_quantization(is_dynamic):
    if is_dynamic:
        raise NotImplementedError("the stand-in has scales that were measured before, and no others")
