"""Sparse autoencoders and image autoencoders on common ground: the same data, the same measures, one table.

    compare(Comparison(out=Path("runs/compare"), data="digits", seeds=5))

Files in the order of the work: `plan` lists who takes part, `grounds` what they are held against, `coders` gives every
model one form, `measures` measures one, `controls` are the codes that numbers are read beside, `members` trains, keeps
and measures, on images and on activations (`rows`, `language`), `courses` follows firing through a training, `tiers`
puts the three tiers together, `table` takes means over seeds, `figures` and `page` show them, `report` is the whole.
"""
