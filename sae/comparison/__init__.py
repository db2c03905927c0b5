"""Sparse autoencoders and image autoencoders on common ground: the same data, the same measures, one table.

    compare(Setting(out=Path("runs/compare"), data="digits", seeds=(0, 1, 2, 3, 4)))

Files in the order of the work: `plan` lists who takes part, `grounds` what they are held against, `coders` gives every
model one form, `measures` measures one, `controls` are the codes that numbers are read beside, `rows` and `language`
make the third tier, `table` takes means over seeds, `figures` and `report` write the page.
"""
