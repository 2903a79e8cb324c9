"""scikit-learn's handwritten digits in MNIST's form: real data that needs no download."""

import torch
from torch.nn import functional
from torch.utils.data import TensorDataset, random_split

from model.mnist import IMAGE_SHAPE, ImageDataModule, normalize


class DigitsDataModule(ImageDataModule):
    """1,797 digits of 8 x 8 pixels, enlarged to 28 x 28; 70 % for training, 15 % validation, 15 % test.

    Args:
        batch_size: samples a batch, on each rank.
        num_workers: loader processes, on each rank.
        split_seed: which sample goes into which set depends on this alone.
    """

    def __init__(self, batch_size: int = 64, num_workers: int = 0, split_seed: int = 42) -> None:
        super().__init__(batch_size, num_workers)
        self.split_seed = split_seed

    def setup(self, stage: str) -> None:
        """Reads the digits and splits them, for every stage alike.

        Raises:
            ModuleNotFoundError: scikit-learn, which holds them, is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            message = "the digits come with scikit-learn: pip install 'launcher[digits]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        images = functional.interpolate(images, size=IMAGE_SHAPE[1:], mode="bilinear")
        full = TensorDataset(normalize(images), torch.from_numpy(digits.target).long())
        split = torch.Generator().manual_seed(self.split_seed)
        self.train_set, self.val_set, self.test_set = random_split(full, [0.7, 0.15, 0.15], generator=split)
