def divide(numerator, denominator):
    if numerator % denominator:
        raise ValueError(f"{numerator} cannot be divided by {denominator}")
    return numerator // denominator


def get_padding_length(numerator, denominator):
    return -numerator % denominator
