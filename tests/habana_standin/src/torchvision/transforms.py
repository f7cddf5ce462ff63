from enum import Enum


class InterpolationMode(Enum):
    BICUBIC = "bicubic"
