"""What a user of SAELens writes, with nothing of ours in it: load, encode, decode.

python user_of_saelens.py FOLDER
"""

import sys

import torch
from sae_lens import SAE

sae = SAE.load_from_disk(sys.argv[1], device="cpu")
x = torch.randn(16, sae.cfg.d_in)
with torch.no_grad():
    features = sae.encode(x)
    x_hat = sae.decode(features)
    assert torch.allclose(x_hat, sae(x))
l0 = (features > 0).sum(-1).float().mean().item()
print(f"{sae.cfg.architecture()} of {sae.cfg.metadata.model_name} at {sae.cfg.metadata.hook_name}, L0 {l0:g}")
