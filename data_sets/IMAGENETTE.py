"""The Imagenette data set."""

from __future__ import annotations

from data_sets._files import reading
from data_sets._imagenette import FILES, TenOfImageNet


class IMAGENETTE(TenOfImageNet):
    """9,469 + 3,925 photographs of ten easily told classes of ImageNet, 160 px version (Howard 2019).

    Args:
        data_dir: folder that holds `imagenette2-160/{train,val}`; downloaded there where it is missing.
        image_size: pixels of the square that pictures are shrunk and cut to.
    """

    folder = "imagenette2-160"
    url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    classes = (
        "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
        "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
    )  # fmt: skip

    def fetch(self) -> None:
        """Downloads the archive and unpacks it."""
        from torchvision.datasets import Imagenette

        with reading("IMAGENETTE", self.root, FILES, url=self.url):
            Imagenette(self.root.parent, size="160px", download=True)
