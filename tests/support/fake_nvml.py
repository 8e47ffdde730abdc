"""NVML by its documented behaviour, as a file to be found before the real library: two cards, the second a slice that
tells neither its power nor its utilisation. Copied as `pynvml.py` into a folder on a process' path.
"""

from types import SimpleNamespace

GIB = 1 << 30


class NVMLError(Exception):
    pass


def nvmlInit():  # noqa: N802
    pass


def nvmlDeviceGetCount():  # noqa: N802
    return 2


def nvmlDeviceGetHandleByIndex(index):  # noqa: N802
    return index


def nvmlDeviceGetUUID(gpu):  # noqa: N802
    return [b"GPU-aaaa", "MIG-bbbb"][gpu]


def nvmlDeviceGetMemoryInfo(gpu):  # noqa: N802
    return SimpleNamespace(total=80 * GIB, used=(20 + gpu) * GIB, free=(60 - gpu) * GIB)


def nvmlDeviceGetUtilizationRates(gpu):  # noqa: N802
    return SimpleNamespace(gpu=_whole(gpu, 25))


def nvmlDeviceGetPowerUsage(gpu):  # noqa: N802
    return _whole(gpu, 310_500)


def nvmlDeviceGetEnforcedPowerLimit(gpu):  # noqa: N802
    return _whole(gpu, 700_000)


def nvmlDeviceGetTotalEnergyConsumption(gpu):  # noqa: N802
    return _whole(gpu, 12_345_678)


def _whole(gpu, value):
    if gpu:
        raise NVMLError("Not Supported")
    return value
