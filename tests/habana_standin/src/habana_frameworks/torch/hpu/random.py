import torch

manual_seed = manual_seed_all = torch.manual_seed
get_rng_state, set_rng_state = torch.get_rng_state, torch.set_rng_state
