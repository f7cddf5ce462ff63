class hardware:  # noqa: N801 - the vendor's name
    TRN1, TRN2 = "trn1", "trn2"

    def __new__(cls, target):
        return target
