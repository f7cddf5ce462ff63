def get_number_of_extra_heads(heads, tp_degree):
    return -heads % tp_degree
