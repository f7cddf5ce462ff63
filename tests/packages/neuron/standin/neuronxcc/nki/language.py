def nc(count):
    return count
