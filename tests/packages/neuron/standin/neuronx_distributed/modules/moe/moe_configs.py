class RoutedExpertsMLPOpsConfig:
    def __init__(self, **kwargs):
        raise NotImplementedError("Llama 4's experts have no stand-in")
