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
