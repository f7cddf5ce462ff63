from dataclasses import dataclass


@dataclass
class RoutedExpertsMLPOpsConfig:
    num_experts: int
    hidden_size: int
    intermediate_size: int
    top_k: int
    hidden_act: str
    glu_mlp: bool
    early_expert_affinity_modulation: bool = False
