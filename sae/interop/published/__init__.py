"""The published sets of autoencoders: repository, layout, language model, sites, and how they were trained.

    SETS["gemma-scope-2b-pt-res"].repository           # "google/gemma-scope-2b-pt-res"

Every line is from public source, as follows; what none of them says is left out.

- Repositories, paths and layers: SAELens 6.54 (pretrained_saes.yaml and its loaders), whose names of sets are kept. In
  addition the README of circuit-tracer 0.5 (sets of mntss), the model card of fnlp/Llama-Scope (the transcoders LXTC),
  the file lists of EleutherAI's repositories, and the tests of SAELens and circuit-tracer (Gemma Scope 2's clt/).
- Sites: the same loaders. Gemma Scope's transcoders: the model card of google/gemma-scope-2b-pt-transcoders.
- BOS and context: the loaders. Tokens left out: Lieberum et al. 2024 (arXiv 2408.05147), section 3, "neither BOS, EOS,
  nor padding"; the model cards of andyrdt.
- Licences: the model cards. They are those of the autoencoders, not of the language models.
"""

from __future__ import annotations

from sae.interop.published.base import PublishedSet
from sae.interop.published.families import FAMILIES
from sae.interop.published.gemma import GEMMA
from sae.interop.published.tools import TOOLS
from sae.interop.published.transcoders import TRANSCODERS

SETS: dict[str, PublishedSet] = {**GEMMA, **FAMILIES, **TRANSCODERS, **TOOLS}
"""Name of the set -> what is known of it."""
