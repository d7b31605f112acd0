"""The 18 data sets of the transfer evaluation, as data."""

from dataclasses import dataclass

__all__ = ["METRIC_LABELS", "TRANSFER_DATASETS", "TransferDataset"]

METRIC_LABELS = {
    "interpolated_mean_average_precision": "11-point mAP",
    "mean_per_class_accuracy": "mean per class",
    "roc_auc": "ROC AUC",
    "top_k_accuracy": "accuracy",
}
"""What reports call the metrics."""


@dataclass(frozen=True)
class TransferDataset:
    """One data set of the transfer evaluation.

    Attributes:
        name: what reports call it.
        metric: one of `METRICS`; accuracy is `top_k_accuracy`.
        train_images: published number of training images.
        test_images: published number of test images.
        validation_images: published number of validation images, 0 if the published training images
            hold them.
        sizes_verified: the published numbers were checked against a second source.
        hub_name: name on the Hub, None where no copy is known that fits.
        verified: the name and its splits were seen on the Hub's pages.
        config_name: configuration on the Hub, None for the only one.
        train_split: training images on the Hub.
        validation_split: validation images on the Hub, None if a share of the training images is
            held out.
        test_split: test images on the Hub.
        image_column: column with the images, None if it is found by its type.
        label_column: column with the labels, None if it is found by its type.
        note: what a reader of the numbers must know about this copy.
    """

    name: str
    metric: str
    train_images: int
    test_images: int
    validation_images: int = 0
    sizes_verified: bool = True
    hub_name: str | None = None
    verified: bool = True
    config_name: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    note: str = ""

    @property
    def multi_label(self) -> bool:
        """Images have any number of classes."""
        return self.metric == "interpolated_mean_average_precision"


TRANSFER_DATASETS = (
    TransferDataset(
        "Food-101",
        "top_k_accuracy",
        train_images=75750,
        test_images=25250,
        hub_name="ethz/food101",
        test_split="validation",
        image_column="image",
        label_column="label",
        note="the Hub calls the test images 'validation'",
    ),
    TransferDataset(
        "CIFAR-10",
        "top_k_accuracy",
        train_images=50000,
        test_images=10000,
        hub_name="uoft-cs/cifar10",
        config_name="plain_text",
        image_column="img",
        label_column="label",
    ),
    TransferDataset(
        "CIFAR-100",
        "top_k_accuracy",
        train_images=50000,
        test_images=10000,
        hub_name="uoft-cs/cifar100",
        image_column="img",
        label_column="fine_label",
    ),
    TransferDataset(
        "SUN397",
        "top_k_accuracy",
        train_images=19850,
        test_images=19850,
        sizes_verified=False,
        hub_name="tanganke/sun397",
        note="which of the ten published partitions the copy holds is not known",
    ),
    TransferDataset(
        "Stanford Cars",
        "top_k_accuracy",
        train_images=8144,
        test_images=8041,
        hub_name="tanganke/stanford_cars",
    ),
    TransferDataset(
        "FGVC Aircraft",
        "mean_per_class_accuracy",
        train_images=3334,
        validation_images=3333,
        test_images=3333,
        hub_name="clip-benchmark/wds_fgvc_aircraft",
        label_column="cls",
        note="the copy on the Hub lacks the validation images; its label column was not seen",
    ),
    TransferDataset(
        "VOC 2007",
        "interpolated_mean_average_precision",
        train_images=2501,
        validation_images=2510,
        test_images=4952,
        hub_name="clip-benchmark/wds_voc2007_multilabel",
        image_column="webp",
        label_column="npy",
        note="the copy on the Hub lacks the validation images and does not mark difficult labels",
    ),
    TransferDataset(
        "DTD",
        "top_k_accuracy",
        train_images=1880,
        validation_images=1880,
        test_images=1880,
        hub_name="mcimpoi/dtd_split_1",
        validation_split="validation",
    ),
    TransferDataset(
        "Oxford-IIIT Pets",
        "mean_per_class_accuracy",
        train_images=3680,
        test_images=3669,
        hub_name="timm/oxford-iiit-pet",
        image_column="image",
        label_column="label",
    ),
    TransferDataset(
        "Caltech-101",
        "mean_per_class_accuracy",
        train_images=3060,
        test_images=6084,
        hub_name="clip-benchmark/wds_vtab-caltech101",
        label_column="cls",
        note="another draw of training images, about a tenth smaller; its label column is unseen",
    ),
    TransferDataset(
        "Oxford Flowers 102",
        "mean_per_class_accuracy",
        train_images=1020,
        validation_images=1020,
        test_images=6149,
        hub_name="dpdl-benchmark/oxford_flowers102",
        validation_split="validation",
    ),
    TransferDataset(
        "MNIST",
        "top_k_accuracy",
        train_images=60000,
        test_images=10000,
        hub_name="ylecun/mnist",
        image_column="image",
        label_column="label",
    ),
    TransferDataset(
        "FER 2013",
        "top_k_accuracy",
        train_images=28709,
        validation_images=3589,
        test_images=3589,
        hub_name="Aaryan333/fer2013_train_publicTest_privateTest",
        validation_split="publicTest",
        test_split="privateTest",
    ),
    TransferDataset(
        "STL-10",
        "top_k_accuracy",
        train_images=5000,
        test_images=8000,
        sizes_verified=False,
        hub_name="tanganke/stl10",
    ),
    TransferDataset(
        "GTSRB",
        "top_k_accuracy",
        train_images=26640,
        validation_images=12569,
        test_images=12630,
        hub_name="tanganke/gtsrb",
        note="the copy on the Hub lacks the validation images",
    ),
    TransferDataset(
        "PatchCamelyon",
        "top_k_accuracy",
        train_images=262144,
        validation_images=32768,
        test_images=32768,
        hub_name="dpdl-benchmark/patch_camelyon",
        validation_split="validation",
        image_column="image",
        label_column="label",
    ),
    TransferDataset(
        "UCF101 frames",
        "top_k_accuracy",
        train_images=9537,
        test_images=3783,
        sizes_verified=False,
        verified=False,
        note="no copy of one frame a video is known on the Hub: give a local copy",
    ),
    TransferDataset(
        "Hateful Memes",
        "roc_auc",
        train_images=8500,
        test_images=500,
        hub_name="emily49/hateful_memes_train_dev",
        test_split="validation",
        note="the Hub calls the test images 'validation'; the challenge's license has to be "
        "accepted before use",
    ),
)
