"""Sparse autoencoders and image autoencoders on common ground: the same data, the same measures, one table.

    compare(Path("runs/compare"), data="digits", seeds=5)

Files in the order of the work: `plan` lists the models, `grounds` the data and its known factors, `coders` gives every
model one interface, `measures` measures one and takes means over seeds, `controls` are codes for reference, `members`
trains, saves and measures, on images and on activations (`language`), `courses` follows firing rates through a
training, `tiers` runs the three tiers, `figures` shows them, `report` runs everything and writes the page.
"""
