"""Does a latent mean one factor, and a factor live in one latent: MIG, DCI, SAP, modularity, IRS, two accuracies.

    scores = disentanglement(codes, factors)             # codes [n, L], factors int64 [n, K] of the same samples
    scores.disentanglement, scores.modularity            # of live latents
    factor_vae_score(draw_from_table(codes, factors), sizes, codes)

Files: `arrays` checks and bins, `information` holds mutual information with MIG and modularity, `dci`, `sap` and `irs`
one measure each, `fixed` the two scores that hold a factor fixed, `scores` all of them at once, with the controls.
"""
