"""The Imagewoof data set."""

from __future__ import annotations

from data_sets._imagenette import TenOfImageNet


class IMAGEWOOF(TenOfImageNet):
    """9,025 + 3,929 photographs of ten breeds of dogs from ImageNet, 160 px version (Howard 2019).

    torchvision has no reader for it, so its archive must be unpacked by hand.

    Args:
        data_dir: folder that holds `imagewoof2-160/{train,val}`.
        image_size: pixels of the square that pictures are shrunk and cut to.
    """

    folder = "imagewoof2-160"
    url = "https://s3.amazonaws.com/fast-ai-imageclas/imagewoof2-160.tgz"
    classes = (
        "n02086240", "n02087394", "n02088364", "n02089973", "n02093754",
        "n02096294", "n02099601", "n02105641", "n02111889", "n02115641",
    )  # fmt: skip
