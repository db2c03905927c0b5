"""Sets of images, by name.

    images = open_images("dsprites", split="heldout")
    x = images.render(torch.arange(64))          # float32 [64, 4096], pixels in [0, 1]

A set is named by
- `digits`: 1,797 digits of 1x8x8 (scikit-learn); `mnist5k`: 5,000 of MNIST, 1x28x28, fetched once;
- `dsprites`: 737,280 dSprites-like white shapes, 1x64x64; `shapes3d`: 480,000 rooms with an object, 3x64x64; both are
  drawn when asked for, `?size=32` smaller;
- `planted`: sums of few known atoms; `planted?atoms=128&size=16&l0=5&noise=0.02&count=100000`;
- `folder:PATH`, or the path alone: a folder of one's own pictures, sub-folders are labels. `PATH?size=64&channels=1`
  resizes and crops them to 64x64, grey; unless told, pictures that share one size of at most 128 a side keep it,
  others become 64x64, and they are grey where all are;
- `OWNER/NAME[:CONFIG]`: a data set on the hub, or the path of a folder that `datasets` saved, with the same options and
  `?image=COLUMN&label=COLUMN&part=SPLIT` where they are not plain (`label=` for none).

Train and heldout are disjoint: the images are put in the order of a permutation drawn from the seed, and the last
fifth of it is held out.
"""

from sae.data.images.base import Factors, ImageSet
from sae.data.images.opening import SPLITS, open_images

__all__ = ["SPLITS", "Factors", "ImageSet", "open_images"]
