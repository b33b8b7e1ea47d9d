"""Settings and fixtures that every test shares."""

import torch

# On two cores torch's default of one thread a core makes tiny operators wait for each other.
torch.set_num_threads(1)
